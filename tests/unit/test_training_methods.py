"""Each method's objective against the formula of its paper, written out; and what a new method
looks like.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from robust_ood import L2, Linf
from robust_ood.attacks import PGD, fgsm
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.training import (
    ADV,
    ALOE,
    AOE,
    OE,
    GaussianNoise,
    Optimization,
    SafeSpotAware,
    Standard,
)

RADIUS = 8 / 255
ATTACK = PGD(Linf(RADIUS), steps=3, step_size=RADIUS / 2, random_start=False)
SPOTS = fgsm(Linf(RADIUS))


@pytest.fixture
def batch(make_images):
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    return Batch(make_images(6), labels, make_images(4, seed=1), torch.arange(6), epoch=2, step=5)


def climb(net, loss, images, center, sign=1, steps=3, size=RADIUS / 2):
    """Sign steps inside the ball around `center`, written out; `sign` -1 descends."""
    current = images.clone()
    for _ in range(steps):
        leaf = current.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(net(leaf)).sum(), leaf)
        current = (
            (current + sign * size * gradient.sign())
            .clamp(center - RADIUS, center + RADIUS)
            .clamp(0, 1)
        )
    return current


def expected_terms(net, batch, attack_in, attack_out):
    """Return CE of (attacked) inliers and CE-to-uniform of (attacked) outliers from one train-mode
    pass.
    """
    net.eval()
    inliers, outliers = batch.images, batch.outliers
    if attack_in:
        inliers = climb(
            net, lambda z: F.cross_entropy(z, batch.labels, reduction="none"), inliers, inliers
        )
    if attack_out:
        outliers = climb(net, lambda z: -z.log_softmax(1).mean(1), outliers, outliers)
    net.train()
    torch.manual_seed(1)  # dropout
    return inliers, outliers


@pytest.mark.parametrize(
    ("make", "attack_in", "attack_out", "weight"),
    [
        (lambda net: Standard(net), False, False, 0),
        (lambda net: OE(net), False, False, 0.5),
        (lambda net: ADV(net, ATTACK), True, False, 0),
        (lambda net: AOE(net, ATTACK), True, False, 0.5),
        (lambda net: ALOE(net, ATTACK, ATTACK), True, True, 0.5),
    ],
    ids=["Standard", "OE", "ADV", "AOE", "ALOE"],
)
def test_objective_is_the_papers_formula(make_net, batch, make, attack_in, attack_out, weight):
    net = make_net().train()
    method = make(net)
    used = batch if weight else batch._replace(outliers=batch.outliers[:0])
    inliers, outliers = expected_terms(net, used, attack_in, attack_out and len(used.outliers) > 0)
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(7)
    logits = net(torch.cat([inliers, outliers]))
    expected = F.cross_entropy(logits[:6], batch.labels)
    if weight:
        expected = expected + weight * -logits[6:].log_softmax(1).mean(1).mean()
    net.load_state_dict(statistics)
    torch.manual_seed(7)
    torch.testing.assert_close(method.objective(used), expected)


def test_safe_spot_objective_is_equation_4(make_net, batch):
    net = make_net()
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    method = SafeSpotAware(net, SPOTS, ATTACK, outlier_weight=0.7, safe_spot_weight=0.3)
    predicted = net(batch.outliers).argmax(1)

    def attacked(images, classes):
        loss = lambda z: F.cross_entropy(z, classes, reduction="none")  # noqa: E731
        spots = climb(net, loss, images, images, sign=-1, steps=1, size=RADIUS)
        return climb(net, loss, spots, spots)

    inliers, unsafe = attacked(batch.images, batch.labels), attacked(batch.outliers, predicted)
    statistics = {name: value.clone() for name, value in net.state_dict().items()}
    logits = net.train()(torch.cat([inliers, batch.outliers, unsafe]))
    net.load_state_dict(statistics)
    escaped = F.cross_entropy(logits[10:], predicted, reduction="none").clamp(max=math.log(4))
    uniform = -logits[6:10].log_softmax(1).mean(1)
    expected = (
        F.cross_entropy(logits[:6], batch.labels) + 0.7 * uniform.mean() - 0.3 * escaped.mean()
    )
    torch.testing.assert_close(method.objective(batch), expected)
    assert method.needs_outliers
    assert not SafeSpotAware(net, SPOTS, ATTACK).needs_outliers


def test_settings_of_the_search_that_would_be_ignored_are_refused(make_net):
    with pytest.raises(UserError, match=r"spot_search\.restarts: belongs to evaluations"):
        SafeSpotAware(make_net(), replace(SPOTS, restarts=5), ATTACK)


def test_third_term_of_equation_4_is_bounded(make_net, batch):
    """However sure the network is of wrong classes, the term gives at most log K, and no gradient
    beyond.
    """
    net = make_net()
    net.head.weight.data.mul_(1e4)
    method = SafeSpotAware(net, SPOTS, ATTACK, safe_spot_weight=1.0)
    without = SafeSpotAware(net, SPOTS, ATTACK, outlier_weight=1e-30)
    torch.manual_seed(0)
    value = method.objective(batch)
    torch.manual_seed(0)
    assert (without.objective(batch) - value).item() <= math.log(4) + 1e-6


def test_gaussian_noise_has_the_given_size_and_its_own_draws(make_net, make_images):
    images = make_images(64, size=16)
    batch = Batch(images, torch.zeros(64, dtype=torch.long), images[:0], torch.arange(64), 0, 0)
    method = GaussianNoise(make_net(), sigma=0.1)
    noisy = method.attacked(batch)[0] - images
    assert abs(noisy.std().item() - 0.1) < 0.002
    assert noisy.mean().abs() < 0.002
    assert torch.equal(method.attacked(batch)[0] - images, noisy)
    assert not torch.equal(method.attacked(batch._replace(step=1))[0] - images, noisy)


@pytest.mark.parametrize("region", [Linf(RADIUS), L2(0.5)], ids=["Linf", "L2"])
def test_attack_from_the_safe_spot_stays_near_the_safe_spot(make_net, batch, region):
    attack = PGD(region, steps=1, step_size=1.25 * region.radius)  # "fast"
    method = SafeSpotAware(make_net(), fgsm(region), attack)
    loss = lambda z: F.cross_entropy(z, batch.labels, reduction="none")  # noqa: E731
    spots = method.run_attack(method.spot_search, loss, batch.images, batch, "safe spots")
    attacked = method.from_safe_spots(batch.images, batch.labels, batch)
    assert (region.norm(spots - batch.images) <= region.radius + 1e-6).all()
    assert (region.norm(attacked - spots) <= region.radius + 1e-6).all()


def test_training_step_leaves_only_parameter_gradients(make_net, batch):
    net = make_net().train()
    method = ALOE(net, ATTACK, ATTACK)
    before = {name: (part.training, part) for name, part in net.named_modules()}
    method.training_step(batch, 0).backward()
    assert all(part.training == flag for flag, part in before.values())
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: OE(net, outlier_weight=-1), "outlier_weight: -1"),
        (
            lambda net: OE(net, outlier_weight=math.nan),
            "outlier_weight: expected a number, got nan",
        ),
        (
            lambda net: ADV(net, ATTACK, attack_mode="both"),
            "attack_mode: expected one of 'eval', 'train', got 'both'",
        ),
        (
            lambda net: SafeSpotAware(net, SPOTS, ATTACK, safe_spot_weight=-0.5),
            "safe_spot_weight: -0.5",
        ),
        (lambda net: GaussianNoise(net, sigma=0), "sigma: 0"),
        (lambda net: Optimization(optimizer={"name": "sgd", "momentum": 1}), "momentum: 1"),
        (
            lambda net: Optimization(optimizer={"name": "sgd", "weight_decay": -1e-4}),
            "Invalid weight_decay value: -0.0001",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(make_net, make, message):
    with pytest.raises(UserError, match=message):
        make(make_net())
