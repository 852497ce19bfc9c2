"""L1: nearest points of the ball and the pixel range, attacks against closed forms, and what is
refused there.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robust_ood import L1, attacks, certify, detectors, minimize, safe_spots
from robust_ood.attacks import PGD, Square, attack_labels, attack_score, standard
from robust_ood.data import Batch
from robust_ood.detectors import Detector, Energy
from robust_ood.errors import UserError
from robust_ood.evaluation import sanity
from robust_ood.randomness import generators
from robust_ood.rules import AutoPGD
from robust_ood.training import ADV

SHAPE = (3, 4, 4)


def draw(count, seed, scale=1.0):
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, *SHAPE, generator=source, dtype=torch.float64)


def clean(count, seed):
    """Images with pixels at both ends of the range."""
    return (draw(count, seed) * 0.6 + 0.5).clamp(0, 1)


def bisected(image, center, radius):
    """Return the nearest point of ball and range, its threshold found by bisection."""
    move = image - center
    room = torch.where(move > 0, 1 - center, center)

    def at(threshold):
        return torch.minimum((move.abs() - threshold).clamp_min(0), room) * move.sign()

    low, high = 0.0, move.abs().max().item()
    if at(0.0).abs().sum() > radius:
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle).abs().sum() > radius else (low, middle)
        return center + at(high)
    return center + at(0.0)


radii = st.one_of(st.sampled_from([0.0, 1e-6, 0.5, 12.0, 100.0]), st.floats(0, 20))


@given(radii, st.integers(0, 999), st.sampled_from([1e-3, 0.3, 1.0, 30.0]), st.booleans())
def test_projection_is_what_bisection_finds(radius, seed, scale, ties):
    center = clean(3, seed)
    images = center + draw(3, seed + 1, scale)
    if ties:
        images = (images * 4).round() / 4
    found = L1(radius).project(images, center)
    for image, middle, nearest in zip(images, center, found, strict=True):
        expected = bisected(image, middle, radius)
        torch.testing.assert_close(nearest, expected, rtol=0, atol=1e-9)


@given(radii, st.integers(0, 999))
def test_no_other_allowed_point_is_nearer(radius, seed):
    center = clean(1, seed)
    image = center + draw(1, seed + 1)
    region = L1(radius)
    found = region.project(image, center)
    others = region.sample(center.expand(50, *SHAPE), generators(seed, indices=range(50)))
    distance = (image - found).norm()
    for point in (others, found + 0.01 * (others - found)):
        assert ((image - point).flatten(1).norm(dim=1) >= distance - 1e-12).all()


@given(st.integers(0, 99), st.floats(0.1, 30))
def test_images_that_differ_enough_spend_the_whole_radius(seed, radius):
    """Clipping after the ball, as other norms do, would leave a part unspent."""
    center = clean(2, seed)
    images = 1 - center.round() + 0 * center
    spent = L1(radius).norm(L1(radius).project(images, center) - center)
    most = (images - center).abs().flatten(1).sum(1).clamp_max(radius)
    torch.testing.assert_close(spent, most)


def test_float32_and_large_images_stay_inside():
    center = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    images = center + torch.randn(center.shape, generator=torch.Generator().manual_seed(1))
    for radius in (0.5, 60.0, 5000.0):
        found = L1(radius).project(images, center)
        spent = (found.double() - center.double()).abs().flatten(1).sum(1)
        torch.testing.assert_close(spent, torch.full_like(spent, radius), rtol=1e-4, atol=0.0)
        assert 0 <= found.min() <= found.max() <= 1


def test_draws_are_uniform_in_the_ball():
    count, size = 4000, math.prod(SHAPE)
    center = torch.full((count, *SHAPE), 0.5, dtype=torch.float64)
    drawn = L1(0.4, clip=False).sample(center, generators(0, indices=range(count))) - center
    share = L1(1.0).norm(drawn) / 0.4
    assert share.max() <= 1
    # The volume within |x| is uniform: mean 1/2, and standard deviation 1 / sqrt(12 N).
    assert (share**size).mean().item() == pytest.approx(0.5, abs=4 / (12 * count) ** 0.5)
    assert drawn.mean(0).abs().max() < 5 * 0.4 / size / count**0.5 * 2


class Linear(Detector):
    """Scores `w . x`, whose best attack is known."""

    def __init__(self, seed=0):
        super().__init__()
        self.register_buffer("weight", draw(1, seed).float())

    def forward(self, images):
        return (self.weight * images).flatten(1).sum(1)


def best_of_linear(weight, images, radius, direction):
    """Return the extreme score: the radius is spent on the largest weights' whole ranges."""
    flat = (direction * weight).flatten()
    values = []
    for image in images.flatten(1):
        room = torch.where(flat > 0, image, 1 - image)
        left, value = radius, (flat * image).sum().item()
        for place in flat.abs().argsort(descending=True).tolist():
            used = min(left, room[place].item())
            value -= used * flat[place].abs().item()
            left -= used
        values.append(direction * value)
    return torch.tensor(values)


@given(radii, st.sampled_from([1, -1]), st.integers(0, 99))
def test_a_step_goes_as_far_down_a_linear_score_as_its_size_allows(size, direction, seed):
    weight, images = draw(1, seed), clean(3, seed + 1)
    region = L1(100.0)
    moved = region.move(images, (direction * weight).expand_as(images), size)
    assert ((moved >= -1e-12) & (moved <= 1 + 1e-12)).all()
    assert (region.norm(moved - images) <= size + 1e-9).all()
    scores = (weight * moved).flatten(1).sum(1)
    best = best_of_linear(weight, images, size, direction)
    torch.testing.assert_close(scores.float(), best, rtol=0, atol=1e-4)
    sizes = torch.full((3, 1, 1, 1), size, dtype=torch.float64)
    each = region.move(images, (direction * weight).expand_as(images), sizes)
    torch.testing.assert_close(each, moved)


@pytest.mark.parametrize("radius", [0.5, 3.0, 10.0, 40.0])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("name", ["pgd", "apgd", "fgsm"])
def test_attacks_find_what_a_linear_score_allows(radius, direction, name):
    detector, images = Linear(), clean(4, 3).float()
    settings = {} if name == "fgsm" else {"steps": 100}
    attack = attacks.build(name, norm="L1", radius=radius, **settings)
    attacked = attack_score(detector, images, attack, direction)
    best = best_of_linear(detector.weight, images, radius, direction)
    clean_scores = detector(images)
    share = (attacked.values - clean_scores) / (best - clean_scores)
    assert share.min() > {"pgd": 0.99, "apgd": 0.8, "fgsm": 0.999}[name]
    assert share.max() < 1 + 1e-4
    assert (L1(radius).norm(attacked.images - images) <= radius * (1 + 1e-5)).all()


ATTACKS = {
    "pgd": {"steps": 5},
    "pgd with a step size": {"name": "pgd", "steps": 5, "step_size": 1.0, "restarts": 2},
    "quantised": {"name": "pgd", "steps": 5, "quantise": True},
    "auto": {"name": "pgd", "steps": 5, "rule": "auto"},
    "fgsm": {},
    "apgd": {"steps": 8, "restarts": 2},
    "targeted": {"steps": 4, "classes": 2},
    "pgd-softmax": {"steps": 4},
    "pgd-features": {"steps": 4},
    "transfer-msp": {"steps": 4},
}


@pytest.mark.parametrize("label", ATTACKS)
def test_every_gradient_attack_stays_inside(label, make_net):
    settings = {"name": label, **ATTACKS[label]}
    attack = attacks.build(settings, norm="L1", radius=3)
    assert attack.settings()["norm"] == "L1"
    net = make_net(dtype=torch.float32)
    images = (
        torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    ).round() / 255
    detector = Energy(net)
    for direction in (1, -1):
        attacked = attack_score(detector, images, attack, direction)
        assert (L1(3).norm(attacked.images - images) <= 3 + 1e-4).all()
        assert (attacked.images >= 0).all()
        assert (attacked.images <= 1).all()
        moved = direction * (attacked.values - detector(images).detach())
        assert label == "transfer-msp" or (moved <= 1e-6).all()
        # One image alone is attacked as in its batch.
        alone = attack_score(detector, images[3:4], attack, direction, indices=torch.tensor([3]))
        torch.testing.assert_close(alone.images[0], attacked.images[3], atol=1e-5, rtol=0)
    wrong = attack_labels(net, images, net(images).argmax(1), attack)
    assert (L1(3).norm(wrong.images - images) <= 3 + 1e-4).all()


@pytest.mark.parametrize("rule", [AutoPGD(), None])
def test_no_images_are_no_mistake(rule):
    images = torch.empty(0, *SHAPE)
    found = minimize(
        lambda x: x.flatten(1).sum(1), images, L1(1.0), steps=3, step_size=1.0, rule=rule
    )
    assert found.images.shape == images.shape


REFUSED = [
    (lambda net: standard(12, "L1"), "norm: the standard suite attacks in Linf and L2"),
    (lambda net: attacks.build("standard", norm="L1", radius=12), "norm: the standard suite"),
    (lambda net: Square(L1(1.0)), "region: Square knows Linf and L2, not L1"),
    (
        lambda net: attacks.build("pgd-low-resolution", norm="L1", radius=12, size=4),
        "Linf",
    ),
    (lambda net: attacks.build("pgd", norm="L1"), "radius: not given; an L1 radius is a sum"),
    (lambda net: attacks.build("pgd", norm="L1", radius=12, steps="aloe"), "steps: 'aloe'"),
    (
        lambda net: safe_spots.search(net, torch.rand(1, *SHAPE), 1.0, "L1"),
        "norm: ",
    ),
    (lambda net: detectors.build("safe-spot", net, norm="L1", radius=1.0), "norm: "),
    (
        lambda net: certify.score_bounds(
            Energy(net), torch.rand(1, *SHAPE), radius=1.0, norm="L1", sigma=0.25
        ),
        "norm: Gaussian smoothing certifies L2, not L1",
    ),
]


@pytest.mark.parametrize("place", range(len(REFUSED)))
def test_what_knows_no_l1_says_so_in_one_line(place, make_net):
    make, message = REFUSED[place]
    with pytest.raises(UserError, match=message) as raised:
        make(make_net(dtype=torch.float32))
    assert "\n" not in str(raised.value)


def test_sanity_checks_an_attack_in_l1(make_net):
    net = make_net(dtype=torch.float32)
    inliers = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outliers = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)) ** 3
    attack = attacks.build("apgd", norm="L1", radius=4, steps=10)
    alarms = sanity.check(Energy(net), inliers, outliers, attack)
    assert not [alarm for alarm in alarms if "beats" in alarm or "weaker" in alarm]

    class Masked(Energy):
        """Gradients that lead nowhere."""

        def surrogate(self, images):
            return (images * torch.linspace(-1, 1, images.shape[3])).flatten(1).sum(1)

    alarms = sanity.check(Masked(net), inliers, outliers, attack)
    assert alarms


def test_training_attacks_in_l1(make_net):
    attack = {"name": "pgd", "norm": "L1", "radius": 2.0, "steps": 3}
    method = ADV(make_net(dtype=torch.float32), attack)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.tensor([0, 1]), images[:0], torch.arange(2), epoch=0, step=0)
    moved, _ = method.attacked(batch)
    sizes = L1(2.0).norm(moved - images)
    assert (sizes <= 2 + 1e-4).all()
    assert (sizes > 1).all()


def test_one_image_does_not_change_anothers_steps():
    detector, images = Linear(), clean(3, 0).float()
    attack = PGD(L1(2.0), steps=6, step_size=2.0, rule=AutoPGD())
    together = attack_score(detector, images, attack, 1)
    for place in range(3):
        alone = attack_score(
            detector, images[place : place + 1], attack, 1, indices=torch.tensor([place])
        )
        torch.testing.assert_close(alone.images[0], together.images[place])
