"""ODIN and PRO equal their formulas written out, image by image, with `backward` and plain
loops.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robust_ood import Linf
from robust_ood.attacks import PGD, lower_score, raise_score
from robust_ood.detectors import (
    GEN,
    MSP,
    ODIN,
    PRO,
    Energy,
    Entropy,
    InputNoise,
    MaxLogit,
    build,
    surface_of,
)
from robust_ood.errors import UserError


@pytest.fixture(scope="module")
def problem(make_net, make_images):
    return make_net(seed=5), make_images(8, seed=5, size=6)


def gradient_of(function, image):
    leaf = image.clone().requires_grad_()
    function(leaf[None]).sum().backward()
    return leaf.grad


# ---------------------------------------------------------------------------------------------------------------- ODIN


def naive_odin(net, images, temperature, magnitude, clip, reference):
    """Liang et al. 2018: x~ = x - eta sign(-grad log S(x; T)), then S(x~; T)."""
    scores, moved = [], []
    for image in images:
        label = net(image[None]).argmax(1)
        gradient = gradient_of(
            lambda x, label=label: F.cross_entropy(net(x) / temperature, label), image
        )
        sign = ((gradient >= 0).double() - 0.5) * 2 if reference else gradient.sign()
        shifted = image - magnitude * sign
        shifted = shifted.clamp(0, 1) if clip else shifted
        scores.append(F.softmax(net(shifted[None]) / temperature, dim=1).max())
        moved.append(shifted)
    return torch.stack(scores).detach(), torch.stack(moved)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("magnitude", [0.0014, 0.05])
@pytest.mark.parametrize("temperature", [1.0, 10.0, 1000.0])
def test_odin_equals_its_formula(problem, temperature, magnitude, clip, reference):
    net, images = problem
    odin = ODIN(net, temperature, magnitude, clip=clip, reference=reference).double()
    scores, moved = naive_odin(net, images, temperature, magnitude, clip, reference)
    torch.testing.assert_close(odin.move(images), moved, rtol=0, atol=1e-12)
    torch.testing.assert_close(odin.published(images), scores, rtol=0, atol=1e-12)
    assert torch.equal(odin(images).argsort(), scores.argsort())
    assert clip == (moved.min() >= 0 and moved.max() <= 1)
    assert (
        odin(images) > MSP(net, temperature).double()(images)
    ).sum() >= 6  # the step raises the score


def test_default_odin_is_the_paper_s():
    assert (
        build("odin", torch.nn.Linear(1, 1)).magnitude,
        build("odin", torch.nn.Linear(1, 1)).detector.temperature,
    ) == (0.0014, 1000)


def test_no_magnitude_is_the_tempered_msp(problem):
    net, images = problem
    assert torch.equal(ODIN(net, 1000.0, 0.0).double()(images), MSP(net, 1000.0).double()(images))


@pytest.mark.parametrize("reference", [False, True])
def test_sign_of_zero(problem, make_net, reference):
    _, images = problem
    net = make_net(seed=5)
    net.conv.weight.data[:, 1] = 0  # green is not looked at: its gradient is exactly zero
    moved = ODIN(net, 10.0, 0.05, reference=reference).double().move(images) - images
    assert (moved[:, 0].abs() - 0.05).abs().max() < 1e-12
    torch.testing.assert_close(
        moved[:, 1], torch.full_like(moved[:, 1], -0.05 if reference else 0.0)
    )


def test_odin_equals_pytorch_ood(problem):
    pytorch_ood = pytest.importorskip(
        "pytorch_ood.detector", reason="pytorch-ood comes with the 'parity' extra"
    )
    net, images = problem
    theirs = pytorch_ood.ODIN(net, eps=0.01, temperature=50.0).predict(images.clone())
    ours = ODIN(net, 50.0, 0.01, reference=True).double().published(images)
    torch.testing.assert_close(ours, -theirs.double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("score", [MSP, Entropy, GEN, Energy, MaxLogit])
def test_input_noise_over_any_score_equals_its_formula(problem, score):
    net, images = problem
    inner = score(net).double()
    expected = []
    for image in images:
        shifted = image + 0.02 * gradient_of(inner, image).sign()
        expected.append(inner(shifted[None])[0].detach())
    torch.testing.assert_close(
        InputNoise(inner, 0.02)(images), torch.stack(expected), rtol=0, atol=1e-10
    )


# ----------------------------------------------------------------------------------------------------------------- PRO


def written_out(name, net):
    """The base scores of the PRO paper, from probabilities."""

    def score(x):
        logits = net(x)
        p = F.softmax(logits / (10 if name == "pro-msp-t" else 1), dim=1)
        if name in ("pro-msp", "pro-msp-t"):
            return p.amax(1)
        if name == "pro-ent":
            return (p * p.log()).sum(1)
        return -((p * (1 - p)) ** 0.1).sum(1)

    return score


def naive_pro(score, images, steps, step_size, clip=False):
    """PRO Alg. 1: every value on the way down, `(N, K + 1)`, and every point."""
    values, points = [], []
    for image in images:
        trail = [image]
        for _ in range(steps):
            moved = trail[-1] - step_size * gradient_of(score, trail[-1]).sign()
            trail.append(moved.clamp(0, 1) if clip else moved)
        values.append(torch.stack([score(point[None])[0].detach() for point in trail]))
        points.append(torch.stack(trail))
    return torch.stack(values), torch.stack(points)


@pytest.mark.parametrize("name", ["pro-msp", "pro-msp-t", "pro-ent", "pro-gen"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("steps", "step_size"), [(1, 1e-3), (3, 1e-3), (5, 0.1)])
def test_pro_equals_its_formula(problem, name, clip, steps, step_size):
    net, images = problem
    pro = build(name, net, steps=steps, step_size=step_size, clip=clip).double()
    values, points = naive_pro(written_out(name, net), images, steps, step_size, clip)
    lowest = values.min(1)
    # `PRO` answers in float32, as detectors do, and its step size is a float32 buffer.
    torch.testing.assert_close(pro.published(images).double(), lowest.values, rtol=0, atol=1e-6)
    assert torch.equal(pro(images).argsort(), pro.published(images).argsort())
    torch.testing.assert_close(
        pro.move(images), points[torch.arange(8), lowest.indices], rtol=0, atol=1e-7
    )


def test_the_minimum_is_over_all_values_and_not_the_last(problem):
    net, images = problem
    values, _ = naive_pro(written_out("pro-ent", net), images, 5, 0.3)
    where = values.argmin(1)
    assert ((where > 0) & (where < 5)).any()  # large steps overshoot, so the cases differ
    found = PRO(Entropy(net), steps=5, step_size=0.3).double().published(images)
    torch.testing.assert_close(found.double(), values.amin(1), rtol=0, atol=1e-6)
    assert (found.double() <= Entropy(net).double().published(images) + 1e-6).all()


def test_units(problem):
    net, images = problem
    pixels = PRO(Entropy(net), steps=3, step_size=0.02).double()
    normalised = PRO(Entropy(net), steps=3, step_size=0.02, units="normalised").double()

    def after_normalisation(inputs):
        maps = torch.relu(net.norm(net.conv(inputs)))
        p = F.softmax(net.head(net.pool(maps).flatten(1)), dim=1)
        return (p * p.log()).sum(1)

    values, points = naive_pro(after_normalisation, net.normalize(images).detach(), 3, 0.02)
    found = normalised.published(images)
    torch.testing.assert_close(found.double(), values.amin(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        net.normalize(normalised.move(images)),
        points[torch.arange(8), values.argmin(1)],
        rtol=0,
        atol=1e-6,
    )
    assert not torch.allclose(pixels(images), normalised(images), atol=1e-5)
    moved = (normalised.move(images) - images).abs().amax((0, 2, 3))
    torch.testing.assert_close(moved, 3 * 0.02 * net.normalize.std.flatten(), rtol=0, atol=1e-6)


def test_pro_leaves_the_image_range_unless_clipped(problem):
    net, images = problem
    free, boxed = (
        PRO(MSP(net), steps=3, step_size=0.1, clip=clip).double().move(images)
        for clip in (False, True)
    )
    assert free.min() < 0
    assert free.max() > 1
    assert boxed.min() >= 0
    assert boxed.max() <= 1


def test_pro_s_step_size_is_no_learned_state(problem):
    assert "step_size" not in PRO(MSP(problem[0])).state_dict()


# ------------------------------------------------------------------------------------------------------ what both share

DETECTORS = {
    "odin": lambda net: ODIN(net, 10.0, 0.02),
    "odin reference": lambda net: ODIN(net, 1000.0, 0.02, reference=True, clip=True),
    "pro-msp": lambda net: PRO(MSP(net), 3, 0.02),
    "pro-ent": lambda net: PRO(Entropy(net), 3, 0.02),
    "pro-gen": lambda net: PRO(GEN(net), 3, 0.02, units="normalised"),
    "pro-odin": lambda net: PRO(ODIN(net, 1.0, 0.02), 2, 0.02),
    "noise-pro": lambda net: InputNoise(PRO(Energy(net), 2, 0.02), 0.01),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_surrogate_is_the_score_or_its_log_odds_with_a_gradient(problem, name):
    net, images = problem
    detector = DETECTORS[name](net).double()
    leaf = images.clone().requires_grad_()
    surrogate = detector.surrogate(leaf)
    if "odin" in name or "msp" in name:
        value, expected = surrogate.sigmoid(), detector.published(images)
    else:
        value, expected = surrogate, detector(images)
    torch.testing.assert_close(value.detach(), expected.double(), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(surrogate.sum(), leaf)
    assert (gradient.flatten(1).abs().amax(1) > 1e-6).all()
    assert surface_of(detector).exact


def test_surrogate_s_gradient_is_the_inner_one_at_the_moved_image(problem):
    net, images = problem
    detector = PRO(Entropy(net), 3, 0.02).double()
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.surrogate(leaf).sum(), leaf)

    def score(x):
        return -(-written_out("pro-ent", net)(x)).log()

    for moved, found in zip(detector.move(images), gradient, strict=True):
        torch.testing.assert_close(found, gradient_of(score, moved))


@pytest.mark.parametrize("name", DETECTORS)
def test_scoring_leaves_no_trace(problem, make_net, name):
    images = problem[1]
    net = make_net(seed=5)
    detector = DETECTORS[name](net).double()
    expected = detector(images)
    with torch.no_grad():
        torch.testing.assert_close(detector(images), expected, rtol=0, atol=0)
    with torch.inference_mode():
        torch.testing.assert_close(detector(images.clone()), expected, rtol=0, atol=0)
    net.requires_grad_(False)
    torch.testing.assert_close(detector(images), expected, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in net.parameters())
    half = torch.cat([detector(images[:3]), detector(images[3:])])
    torch.testing.assert_close(half, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda net: ODIN(net, 1000.0, 0.005), lambda net: PRO(MSP(net), 3, 2e-3)],
    ids=["odin", "pro-msp"],
)
@pytest.mark.parametrize("attack", [lower_score, raise_score])
def test_an_attack_through_the_detector_is_at_least_as_strong_as_a_transferred_one(
    trained, make, attack
):
    net, inliers, _, outliers = trained
    detector, sign = make(net), 1 if attack is lower_score else -1
    images = inliers if attack is lower_score else outliers
    pgd = PGD(Linf(8 / 255), steps=10, restarts=2)
    softmax = PGD(Linf(8 / 255), steps=10, restarts=2, objective="softmax")
    with torch.no_grad():
        clean = detector(images)
        through = detector(attack(detector, images, pgd))
        transferred = detector(attack(MSP(net), images, pgd))
        published = detector(
            attack(detector, images, softmax)
        )  # the ALOE paper's, judged by the detector
    gain = sign * (clean - through)
    assert (gain >= 0).all()
    assert gain.mean() > 0.05 * clean.std()
    assert (gain >= sign * (clean - transferred) - 1e-6).all()  # image by image
    assert gain.mean() >= 0.98 * sign * (clean - published).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: ODIN(net, magnitude=-0.1), "magnitude: expected a number >= 0, got -0.1"),
        (lambda net: ODIN(net, magnitude=float("nan")), "magnitude: .*nan"),
        (lambda net: ODIN(net, magnitude="1/0"), "magnitude: '1/0'"),
        (
            lambda net: ODIN(net, temperature=0.0),
            "temperature: expected a number > 0 or 'fit', got 0.0",
        ),
        (lambda net: PRO(MSP(net), steps=0), "steps: expected a whole number >= 1, got 0"),
        (lambda net: PRO(MSP(net), steps=1.5), "steps: expected a whole number, got 1.5"),
        (lambda net: PRO(MSP(net), step_size=0.0), "step_size: expected a number > 0, got 0.0"),
        (lambda net: PRO(MSP(net), step_size=float("inf")), "step_size: inf"),
        (
            lambda net: PRO(MSP(net), units="normalized"),
            "units: expected one of 'pixels', 'normalised', got 'normalized'",
        ),
        (
            lambda net: PRO(MSP(torch.nn.Linear(2, 2)), units="normalised"),
            "units: .*one Normalize layer",
        ),
    ],
)
def test_mistakes_are_named(problem, make, message):
    with pytest.raises(UserError, match=message):
        make(problem[0])


def test_magnitude_and_step_size_may_be_fractions(problem):
    assert ODIN(problem[0], magnitude="1/255").magnitude == 1 / 255
    assert PRO(MSP(problem[0]), step_size="1/255").step_size.item() == pytest.approx(1 / 255)
