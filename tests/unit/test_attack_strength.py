"""Places where an attack could be weaker than it says, or a published one stronger than it was."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from robust_ood import L2, Linf, attacks
from robust_ood.attacks import (
    PGD,
    LowResolution,
    Suite,
    aloe_mahalanobis,
    attack_score,
    standard,
    transferred,
)
from robust_ood.detectors import (
    KNN,
    ODIN,
    PRO,
    AttackSurface,
    DeepEnsemble,
    Detector,
    Energy,
    Entropy,
    LayerNoise,
    Mahalanobis,
    Mean,
    OutputsDetector,
    ReAct,
    Standardize,
    surface_of,
)
from robust_ood.errors import UserError
from robust_ood.evaluation import sanity
from robust_ood.rules import AutoPGD, Steepest

REGION = Linf(0.05)
WEIGHT = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(9)) - 0.5


class Linear(Detector):
    def forward(self, images):
        return (images * WEIGHT).flatten(1).sum(1)


class Misled(Linear):
    """The first stand-in leads nowhere, the second one is the score."""

    def surrogate(self, images):
        return 0 * images.flatten(1).sum(1)

    def attack_surface(self):
        return AttackSurface((self.surrogate, self))


class Noisy(Linear):
    """A score with noise that is drawn anew at each use."""

    def __init__(self):
        super().__init__()
        self.draws = torch.Generator().manual_seed(0)

    def forward(self, images):
        return super().forward(images) + 0.5 * torch.randn(len(images), generator=self.draws)


def draw(count, size=4):
    return 0.4 + 0.2 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def gain(images, found):
    """How far the linear score fell, as a share of how far it can fall."""
    return ((images - found) * WEIGHT).flatten(1).sum(1) / (REGION.radius * WEIGHT.abs().sum())


def candidates(detector, images, attack, direction=1):
    return [
        one.images
        for one in attack.on_score(detector, images, direction, torch.arange(len(images)))
    ]


def moving(net, inliers, labels):
    """Detectors that move images before they score them, and each one's score without the
    movement.
    """
    layers = Mahalanobis(net, ["conv", "penultimate"]).fit([(inliers, labels)])
    entropy = Entropy(net)
    odin = ODIN(net, 10.0, 0.01)
    return {
        "odin": (odin, odin.detector),
        "pro": (PRO(entropy, step_size=0.01), entropy),
        "pro-odin": (PRO(odin), odin.detector),
        "layer-noise": (LayerNoise(layers, 0.01), layers),
        "standardize": (Standardize(odin).fit([(inliers, labels)]), odin.detector),
        "mean": (Mean([odin, entropy]), Mean([odin.detector, entropy])),
    }


@pytest.mark.parametrize("name", ["odin", "pro", "pro-odin", "layer-noise", "standardize", "mean"])
@pytest.mark.parametrize("low", [False, True], ids=["full", "low resolution"])
def test_the_attack_as_published_knows_nothing_of_the_movement(trained, name, low):
    net, inliers, labels, _ = trained
    detector, unmoved = moving(net, inliers, labels)[name]

    def published(chosen):
        attack = aloe_mahalanobis(REGION, precision="float32")
        (found,) = candidates(chosen, inliers[:4], LowResolution(attack, 4) if low else attack)
        return found

    assert torch.allclose(published(detector), published(unmoved), atol=1e-6)
    adaptive = candidates(detector, inliers[:4], PGD(REGION, step_size=1 / 255, keep="last"))[0]
    assert not torch.allclose(published(detector), adaptive, atol=1e-3)


@pytest.mark.parametrize("source", ["msp", "softmax", "unmoved", "features"])
@pytest.mark.parametrize("keep", ["objective", "last"])
def test_a_transferred_attack_does_not_choose_by_the_true_score(trained, source, keep):
    net, inliers, _, _ = trained
    for detector in (Entropy(net), ODIN(net), PRO(Entropy(net))):  # these have several stand-ins
        assert len(surface_of(detector).surrogates) > 1
        attack = PGD(
            REGION, objective=source, keep=keep, steps=2, restarts=2 if keep == "objective" else 1
        )
        assert len(candidates(detector, inliers[:4], attack)) == 1


@pytest.mark.parametrize(
    "make", [Entropy, lambda net: DeepEnsemble([net, net])], ids=["entropy", "ensemble"]
)
def test_an_undecided_network_does_not_stop_the_attack(make):
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4, bias=False))
    weight = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    net[1].weight.data = weight - weight.mean(
        1, keepdim=True
    )  # grey images have no logits, and no slope of entropy
    grey = torch.full((2, 3, 4, 4), 0.5)
    found = attack_score(make(net), grey, PGD(REGION, random_start=False), -1)
    assert (found.values > make(net)(grey) + 0.05).all()


def test_low_resolution_follows_every_stand_in():
    images = draw(3)
    assert (gain(images, attack_score(Misled(), images, PGD(REGION), 1).images) > 0.99).all()
    whole = attack_score(Misled(), images, LowResolution(PGD(REGION), 4), 1).images
    assert (gain(images, whole) > 0.99).all()


def test_low_resolution_hands_over_what_is_handed_over():
    assert not LowResolution(transferred(PGD(REGION)), 4).keeps_clean
    assert LowResolution(PGD(REGION), 4).keeps_clean
    with pytest.raises(UserError, match="attack: a suite given"):
        LowResolution(standard(0.05), 4)
    with pytest.raises(UserError, match="attack: an L2 perturbation grows"):
        LowResolution(PGD(L2(0.5)), 4)


class Misleading(OutputsDetector):
    """A score of outputs whose first stand-in is the opposite of it, and whose second one is the
    score.
    """

    def score(self, out):
        return out.logits[:, 0]

    def surrogate_score(self, out):
        return -out.logits[:, 0]

    def attack_surface(self):
        return AttackSurface((self.surrogate, self))


def test_shaped_scores_are_attacked_through_every_stand_in_of_what_they_wrap(trained):
    net, images, *_ = trained
    shaped = ReAct(Misleading(net), threshold=1e9)  # clips nothing
    clean, found = shaped(images[:4]), attack_score(shaped, images[:4], PGD(REGION), 1)
    alone = attack_score(Misleading(net), images[:4], PGD(REGION), 1)
    assert (found.values < clean - 0.01).all()
    torch.testing.assert_close(found.values, alone.values)


def test_low_resolution_works_inside_a_suite_on_what_is_left(trained):
    net, inliers, labels, _ = trained
    low = LowResolution(PGD(Linf(0.1)), 4)
    suite = Suite({"low": low}, {"pgd": PGD(Linf(0.02), steps=3), "low": low})
    found = attacks.misclassify(net, inliers, labels, suite)
    alone = attacks.misclassify(net, inliers, labels, low)
    assert ((net(found).argmax(1) == labels).sum() <= (net(alone).argmax(1) == labels).sum()).all()


def test_a_random_score_s_best_image_is_not_its_luckiest():
    images = draw(8)
    # Constant steps: momentum averages over draws itself.
    attack = PGD(REGION, 10, step_size=REGION.radius / 4)
    lucky, averaged = (
        candidates(Noisy(), images, replace(attack, noise_draws=draws))[0] for draws in (1, 64)
    )
    assert gain(images, lucky).mean() < 0.9
    assert gain(images, averaged).mean() > 0.97


def test_a_tie_is_not_taken_for_an_error():
    class Coarse(nn.Module):
        """Whole-number logits; the pixel sum decides between class 0, which wins ties, and
        class 1.
        """

        def forward(self, images):
            fine = 20 * (images.flatten(1).sum(1, keepdim=True) - 24)  # (N, 1)
            rounded = fine + (fine.round() - fine).detach()
            return torch.cat([torch.zeros_like(fine), rounded], 1)

    class Step(PGD):
        """Goes to a tie and stops there."""

        def on_label(self, net, images, labels, indices):
            yield attacks.Candidate(
                images * (24 / images.flatten(1).sum(1)).view(-1, 1, 1, 1), "tie"
            )

    images = 0.499 * torch.ones(2, 3, 4, 4)
    labels = torch.zeros(2, dtype=torch.long)
    suite = Suite({}, {"tie": Step(REGION), "pgd": PGD(REGION, steps=5, loss="margin")})
    found = attacks.misclassify(Coarse(), images, labels, suite)
    assert (Coarse()(found).argmax(1) == 1).all()


def test_members_that_cannot_apply_are_named(trained):
    net, inliers, _, outliers = trained

    class Nameless(Detector):
        """Its network is no detector's, so nobody knows that it is a classifier."""

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            return self.net(images).logsumexp(1)

    suite = standard(0.05)
    left_out = ["softmax", "aloe", "tied", "msp", "features", "targeted"]
    assert suite.left_out(Nameless()) == left_out
    assert suite.left_out(Energy(net)) == []
    warnings = sanity.check(Nameless(), inliers, outliers, suite, limit=4)
    assert any(f"{', '.join(left_out)} do not apply" in warning for warning in warnings)
    assert not any(
        "do not apply" in w for w in sanity.check(Energy(net), inliers, outliers, suite, limit=4)
    )
    won = attack_score(Nameless(), outliers[:2], suite, -1).wins()
    assert set(won) == {"clean", "pgd", "apgd", "aloe-unmoved", "square", "finish"}


# Rough scores ---------------------------------------------------------------------------------


def mean_score(detector, images, attack):
    return float(attack_score(detector, images, attack, 1).values.mean())


def test_shrinking_steps_settle_where_constant_ones_keep_jumping(trained):
    net, inliers, labels, _ = trained
    detector = KNN(net, neighbours=3).fit([(inliers, labels)])
    images = inliers[:8]
    constant = PGD(REGION, steps=40, step_size=2.5 * REGION.radius / 40)
    shrinking = PGD(REGION, steps=40)
    assert mean_score(detector, images, shrinking) < mean_score(detector, images, constant)


@pytest.mark.parametrize("make", [KNN, Energy, ODIN])
def test_more_shrinking_steps_are_no_weaker_an_attack(trained, make):
    net, inliers, labels, _ = trained
    detector = make(net, neighbours=3) if make is KNN else make(net)
    if not detector.fitted:
        detector.fit([(inliers, labels)])
    few, many = (mean_score(detector, inliers[:8], PGD(REGION, steps=steps)) for steps in (10, 80))
    assert many <= few + 1e-3 * abs(few)


def test_a_step_size_of_one_s_own_means_constant_steps():
    assert PGD(REGION, steps=5, step_size=0.01).rule is None
    assert PGD(REGION, steps=5).rule == Steepest(momentum=0.9, decay="cosine")
    assert PGD(REGION, steps=5).step_size == REGION.radius
    assert PGD(REGION, steps=5, rule=AutoPGD()).step_size == pytest.approx(REGION.radius / 2)


def test_cosine_steps_move_a_linear_score_as_far_as_their_sum():
    images = torch.full((2, 3, 4, 4), 0.5)
    shares = [0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(5)]
    attack = PGD(
        Linf(0.4),
        steps=5,
        step_size=0.01,
        random_start=False,
        keep="last",
        rule=Steepest(decay="cosine"),
    )
    moved = attack_score(Linear(), images, attack, 1).images - images
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.01 * sum(shares)), atol=1e-6)


def test_a_tie_is_a_tie(trained):
    net, inliers, _, _ = trained
    attack = PGD(Linf(64 / 255), steps=40, objective="tied")
    (found,) = candidates(Energy(net), inliers[:4], replace(attack, keep="objective"))
    before = net(inliers[:4]).topk(3, dim=1)
    after = net(found).gather(1, before.indices)
    assert (after.std(1) < before.values.std(1)).all()
