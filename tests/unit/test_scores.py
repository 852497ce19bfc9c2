"""MSP, Entropy, GEN, MaxLogit and Energy against formulas written out, and where they saturate."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch import nn

from robust_ood.detectors import (
    GEN,
    MSP,
    ODIN,
    PRO,
    DeepEnsemble,
    Energy,
    Entropy,
    MaxLogit,
    SafeSpot,
    build,
    build_all,
    surface_of,
)
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


def form_by_hand(kind, row, temperature=1.0, **settings):
    """The form in which the detector gives the score, in 60-digit arithmetic."""
    value = by_hand(kind, row, temperature, **settings)
    if kind is MSP:
        p = probabilities(row, temperature)
        rest = sum(sorted(p)[:-1])
        return Decimal(temperature) * (value / rest * (len(row) - 1)).ln()
    if kind in (Entropy, GEN):
        return -(-value).ln()
    return value


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
    expected = [float(form_by_hand(kind, row, **settings)) for row in logits.tolist()]
    found = scorer(kind, **settings).score(of(logits))
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    published = scorer(kind, **settings).published_score(of(logits))
    expected = [float(by_hand(kind, row, **settings)) for row in logits.tolist()]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(published, expected, rtol=1e-9, atol=1e-12)


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
        float(form_by_hand(GEN, row, **{"gamma": 0.1, "top": 100, **settings}))
        for row in logits.tolist()
    ]
    torch.testing.assert_close(score, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    assert gradient.isfinite().all()
    if margin >= 10:  # the second row's classes tie
        assert (gradient[[0, 2]].abs().amax(1) > 0).all()


def test_gen_keeps_its_gradient_where_the_naive_formula_loses_it():
    logits = torch.tensor([[30.0, 0, 1, -1]], requires_grad=True)
    p = logits.softmax(1)
    (naive,) = torch.autograd.grad(-((p * (1 - p)) ** 0.1).sum(), logits)
    assert naive.isnan().any()
    published = GEN(nn.Linear(1, 1)).published_score(of(logits))
    (gradient,) = torch.autograd.grad(published.sum(), logits)
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
    published = detector.published_score(of(logits))
    torch.testing.assert_close(surrogate.sigmoid(), published)
    torch.testing.assert_close(score, temperature * (surrogate + math.log(5)))
    assert torch.equal(score.argsort(), surrogate.argsort())
    if temperature != 0.1:  # there float64 probabilities are 1 many times over
        assert torch.equal(score.argsort(), published.argsort())
    assert surface_of(detector).exact


@pytest.mark.parametrize("margin", [18.0, 100.0, 1e4])
def test_msp_surrogate_is_alive_where_the_probability_saturates(margin):
    logits = torch.tensor([[margin, 0.0, 1.0]], requires_grad=True)
    detector = MSP(nn.Linear(1, 1))
    assert detector.published_score(of(logits)).item() == 1
    (gradient,) = torch.autograd.grad(detector.surrogate_score(of(logits)).sum(), logits)
    torch.testing.assert_close(gradient[0, 0], torch.tensor(1.0))
    assert (gradient[0, 1:] < -0.1).all()


def test_ranges():
    logits = torch.cat([logits_of(scale=20.0), torch.zeros(1, 6).double()])
    assert (scorer(MSP).score(of(logits)) >= 0).all()
    probability = scorer(MSP).published_score(of(logits))
    assert ((probability > 1 / 6 - 1e-9) & (probability <= 1)).all()
    entropy = scorer(Entropy).published_score(of(logits))
    assert entropy.min().item() == pytest.approx(-math.log(6))
    assert entropy.max() <= 0
    assert scorer(Entropy).score(of(logits)).min().item() == pytest.approx(-math.log(math.log(6)))
    assert (scorer(GEN).published_score(of(logits)) <= 0).all()
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


# --- ties


class Margins(nn.Module):
    """A network whose margin is the first pixel times a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    def forward(self, images):
        return self.head(images.flatten(1)[:, :2] * self.gain)


SATURATING = {
    "msp": MSP,
    "cold msp": lambda net: MSP(net, 0.1),
    "warm msp": lambda net: MSP(net, 1000.0),
    "odin": lambda net: ODIN(net, 1.0, 0.0014),
    "warm odin": lambda net: ODIN(net, 1000.0, 0.0014),
    "entropy": Entropy,
    "gen": GEN,
    "gen of few": lambda net: GEN(net, gamma=5.0, top=1),
    "pro-msp": lambda net: PRO(MSP(net), step_size=1e-6),
    "pro-ent": lambda net: PRO(Entropy(net), step_size=1e-6),
    "pro-gen": lambda net: PRO(GEN(net), step_size=1e-6),
    "ensemble": lambda net: DeepEnsemble([net, net]),
    "ensemble by msp": lambda net: DeepEnsemble([net, net], "msp"),
    "safe-spot": lambda net: SafeSpot(net, 0.0, method="fgsm", attack_steps=1),
}


@pytest.mark.parametrize("name", SATURATING)
def test_images_tie_in_float32_only_where_their_logits_do(name):
    """Neighbouring margins differ by a share of 1e-3, from 10 to 10^4: published values tie."""
    margins = torch.logspace(1, 4, 6000)
    images = torch.zeros(6000, 1, 1, 2)
    images[:, 0, 0, 0] = margins / 1e4
    detector = SATURATING[name](Margins(1e4).eval())
    scores = detector(images).detach()
    assert scores.dtype == torch.float32
    assert (scores.diff() > 0).all()
    published = detector.published(images).detach()
    assert (published.diff() >= -1e-6 * published.abs().max()).all()
    if name not in ("warm msp", "warm odin"):
        assert len(published.unique()) < 6000


@pytest.mark.parametrize("name", SATURATING)
def test_scores_order_images_as_their_published_values_do(name):
    draws = torch.Generator().manual_seed(3)
    images = torch.rand(500, 1, 1, 2, generator=draws).double()
    detector = SATURATING[name](Margins(5.0).eval()).double()
    order = detector(images).argsort(stable=True)
    published = detector.published(images)[order]
    assert (published.diff() >= -1e-6 * published.abs().max()).all()
    assert published.unique().numel() > 100


@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_odin_s_published_value_is_the_probability(temperature):
    images = torch.tensor([0.9, 0.5]).view(1, 1, 1, 2)
    net = Margins(2.0).eval()
    detector = ODIN(net, temperature, magnitude=0.0)
    p = (net(images) / temperature).softmax(1).amax(1)
    torch.testing.assert_close(detector.published(images), p)
