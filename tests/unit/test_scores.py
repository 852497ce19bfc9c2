"""MSP, Entropy, GEN, MaxLogit and Energy against formulas written out, and where they saturate."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch import nn

from robust_ood.detectors import GEN, MSP, Energy, Entropy, MaxLogit, build, build_all, surface_of
from robust_ood.errors import UserError
from robust_ood.models import Outputs

getcontext().prec = 60

SCORES = [MSP, Entropy, GEN, MaxLogit, Energy]


def of(logits):
    """Outputs of a forward pass that gave these logits."""
    return Outputs(logits, logits, nn.Linear(1, 1), {})


def logits_of(count=20, classes=6, scale=4.0):
    draws = torch.Generator().manual_seed(0)
    return torch.randn(count, classes, generator=draws, dtype=torch.float64) * scale


def scorer(kind, **settings):
    return kind(nn.Linear(1, 1), **settings).double()


def probabilities(row, temperature=1.0):
    powers = [(Decimal(value) / Decimal(temperature)).exp() for value in row]
    return [power / sum(powers) for power in powers]


def by_hand(kind, row, temperature=1.0, gamma=0.1, top=100):
    """The score in 60-digit arithmetic."""
    p = probabilities(row, temperature)
    if kind is MSP:
        return max(p)
    if kind is Entropy:
        return sum(value * value.ln() for value in p)
    if kind is MaxLogit:
        return max(row)
    if kind is Energy:
        T = Decimal(temperature)
        return T * sum((Decimal(value) / T).exp() for value in row).ln()
    rest = [sum(p[:k]) + sum(p[k + 1 :]) for k in range(len(p))]  # 1 - p without cancellation
    largest = sorted(zip(p, rest, strict=True), reverse=True)[:top]
    return -sum((value * other) ** Decimal(gamma) for value, other in largest)


CASES = [
    (MSP, {}),
    (MSP, {"temperature": 0.125}),
    (MSP, {"temperature": 1000.0}),
    (Entropy, {}),
    (MaxLogit, {}),
    (Energy, {}),
    (Energy, {"temperature": 0.5}),
    (Energy, {"temperature": 100.0}),
    (GEN, {}),
    (GEN, {"gamma": 0.5, "top": 3}),
    (GEN, {"gamma": 0.01, "top": 1}),
    (GEN, {"gamma": 1.0, "top": 6}),
]


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_score_equals_its_formula(kind, settings, scale):
    logits = logits_of(scale=scale)
    expected = [float(by_hand(kind, row, **settings)) for row in logits.tolist()]
    found = scorer(kind, **settings).score(of(logits))
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_gradient_equals_finite_differences(kind, settings):
    detector = scorer(kind, **settings)
    logits = logits_of(5, scale=2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: detector.score(of(z)), logits, eps=1e-7, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda z: detector.surrogate_score(of(z)), logits, eps=1e-7, atol=1e-6
    )


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_are_float32(kind, settings, dtype):
    detector, logits = kind(nn.Linear(1, 1), **settings), logits_of().to(dtype)
    found = detector.score(of(logits))
    assert found.dtype == torch.float32
    assert found.shape == (20,)
    torch.testing.assert_close(
        found.double(), detector.double().score(of(logits.double())), rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=str)
def test_a_confident_image_scores_higher_than_an_unsure_one(kind, settings):
    logits = torch.tensor([[4.0, 0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0, 0]]).double()
    sure, unsure = scorer(kind, **settings).score(of(logits))
    assert sure > unsure


@pytest.mark.parametrize("margin", [0.0, 1.0, 10.0, 16.0, 18.0, 30.0, 90.0, 1e3, 1e4])
@pytest.mark.parametrize(
    "settings", [{}, {"gamma": 0.5, "top": 2}, {"gamma": 0.01}, {"top": 1}], ids=str
)
def test_gen_is_finite_at_any_margin_in_float32(margin, settings):
    logits = torch.tensor(
        [[margin, 0, 1, -1], [0, margin, margin, 0], [-margin, 0, 0, margin]]
    ).requires_grad_()
    score = GEN(nn.Linear(1, 1), **settings).score(of(logits))
    (gradient,) = torch.autograd.grad(score.sum(), logits)
    expected = [
        float(by_hand(GEN, row, **{"gamma": 0.1, "top": 100, **settings}))
        for row in logits.tolist()
    ]
    torch.testing.assert_close(score, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert gradient.isfinite().all()


def test_gen_keeps_its_gradient_where_the_naive_formula_loses_it():
    logits = torch.tensor([[30.0, 0, 1, -1]], requires_grad=True)
    p = logits.softmax(1)
    (naive,) = torch.autograd.grad(-((p * (1 - p)) ** 0.1).sum(), logits)
    assert naive.isnan().any()
    (gradient,) = torch.autograd.grad(GEN(nn.Linear(1, 1)).score(of(logits)).sum(), logits)
    wide = logits.detach().double().requires_grad_()
    q = wide.softmax(1)
    rest = torch.cat(
        [q[:, 1:].sum(1, keepdim=True), 1 - q[:, 1:]], dim=1
    )  # 1 - p without cancellation
    (expected,) = torch.autograd.grad(-((q * rest) ** 0.1).sum(), wide)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-8)
    assert (gradient != 0).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 1000.0])
def test_msp_surrogate_orders_as_the_score(temperature):
    detector, logits = scorer(MSP, temperature=temperature), logits_of(200, scale=2.0)
    score, surrogate = detector.score(of(logits)), detector.surrogate_score(of(logits))
    torch.testing.assert_close(surrogate.sigmoid(), score)
    if temperature != 0.1:  # there float64 scores are 1 many times over
        assert torch.equal(score.argsort(), surrogate.argsort())
    assert surface_of(detector).exact


@pytest.mark.parametrize("margin", [18.0, 100.0, 1e4])
def test_msp_surrogate_is_alive_where_the_score_saturates(margin):
    logits = torch.tensor([[margin, 0.0, 1.0]], requires_grad=True)
    detector = MSP(nn.Linear(1, 1))
    assert detector.score(of(logits)).item() == 1
    (gradient,) = torch.autograd.grad(detector.surrogate_score(of(logits)).sum(), logits)
    torch.testing.assert_close(gradient[0, 0], torch.tensor(1.0))
    assert (gradient[0, 1:] < -0.1).all()


def test_ranges():
    logits = torch.cat([logits_of(scale=20.0), torch.zeros(1, 6).double()])
    assert (
        (scorer(MSP).score(of(logits)) > 1 / 6 - 1e-9) & (scorer(MSP).score(of(logits)) <= 1)
    ).all()
    entropy = scorer(Entropy).score(of(logits))
    assert entropy.min().item() == pytest.approx(-math.log(6))
    assert entropy.max() <= 0
    assert (scorer(GEN).score(of(logits)) <= 0).all()
    assert (scorer(Energy).score(of(logits)) >= scorer(MaxLogit).score(of(logits))).all()


@pytest.mark.parametrize("kind", SCORES)
def test_a_detector_reads_its_network(kind, make_net, make_images):
    net, images = make_net(), make_images()
    detector = kind(net).double()
    torch.testing.assert_close(detector(images), detector.score(of(net(images))))
    assert detector.networks == (net,)
    assert detector.fit([]) is detector


def test_settings_are_saved_with_the_module():
    saved = MSP(nn.Linear(1, 1), temperature=7.0).state_dict()
    other = MSP(nn.Linear(1, 1))
    other.load_state_dict(saved)
    assert other.temperature.item() == 7


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (MSP, {"temperature": 0.0}, "temperature: expected .* got 0.0"),
        (MSP, {"temperature": -1.0}, "temperature: expected .* got -1.0"),
        (Energy, {"temperature": 0.0}, "temperature: expected .* got 0.0"),
        (Energy, {"temperature": math.nan}, "temperature: expected .* got nan"),
        (GEN, {"gamma": 0.0}, "gamma: expected .* got 0.0"),
        (GEN, {"gamma": math.nan}, "gamma: expected .* got nan"),
        (GEN, {"top": 0}, "top: expected .* got 0"),
    ],
)
def test_mistakes_are_named(kind, settings, message):
    with pytest.raises(UserError, match=message):
        kind(nn.Linear(1, 1), **settings)


# --- registry


def test_names_build_what_they_say(make_net):
    net = make_net()
    found = build_all(
        [
            "msp",
            {"name": "energy", "temperature": 2.0, "label": "warm"},
            {"name": "gen", "gamma": 0.5},
        ],
        net,
    )
    assert list(found) == ["msp", "warm", "gen"]
    assert [type(detector) for detector in found.values()] == [MSP, Energy, GEN]
    assert found["warm"].temperature == 2
    assert found["gen"].gamma == 0.5
    assert found["msp"].net is net


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("odni", "detectors: unknown name 'odni'; did you mean 'odin'?"),
        ("MSP", "did you mean 'msp'?"),
        ("zzzzzz", "unknown name 'zzzzzz'; known: "),
        ({"name": "gen", "gama": 0.5}, "detectors.gen.gama: no such setting"),
        ({"name": "gen", "gamma": -1}, "gamma: expected a number > 0, got -1"),
        ({"gamma": 1}, "detectors: .* has no 'name'"),
    ],
    ids=str,
)
def test_unknown_names_and_settings(spec, message, make_net):
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        build_all([spec], make_net())
    assert "\n" not in str(caught.value)


def test_a_label_stands_once(make_net):
    with pytest.raises(UserError, match="'msp' is duplicated"):
        build_all(["msp", {"name": "msp", "temperature": 2.0}], make_net())
    assert build("msp", make_net(), temperature=3.0).temperature == 3
