"""Attacks against closed forms, one another and their promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust_ood import L2, Linf, Unbounded, attacks, detectors, losses
from robust_ood.attacks import (
    PGD,
    Candidate,
    LowResolution,
    Square,
    Suite,
    Targeted,
    apgd,
    attack_score,
    standard,
    transferred,
)
from robust_ood.attacks.objectives import expected
from robust_ood.detectors import MSP, PRO, Detector, Energy, InputNoise
from robust_ood.errors import UserError
from robust_ood.rules import Steepest


class Linear(Detector):
    """The score `w x`."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, images):
        return (images * self.weight).flatten(1).sum(1)


class Hill(Detector):
    """The score `-|x - center|^2`."""

    def __init__(self, center):
        super().__init__()
        self.register_buffer("center", center)

    def forward(self, images):
        return -(images - self.center).square().flatten(1).sum(1)


def draw(count, size=4, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


WEIGHT = draw(1, seed=9) - 0.5
ADAPTIVE = {
    "pgd": lambda region: PGD(region, steps=20),
    "pgd-momentum": lambda region: PGD(region, steps=20, rule=Steepest(momentum=0.9)),
    "apgd": lambda region: apgd(region, steps=40),
    "suite": lambda region: standard(region.radius, region.name),
}


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("region", [Linf(0.1), L2(0.3)], ids=["Linf", "L2"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_linear_score_moves_by_its_closed_form(name, region, direction):
    images = 0.4 + 0.2 * draw(5)
    found = attack_score(Linear(WEIGHT), images, ADAPTIVE[name](region), direction)
    change = direction * ((found.images - images) * WEIGHT).flatten(1).sum(1)
    best = -region.radius * (WEIGHT.abs().sum() if region.name == "Linf" else WEIGHT.norm())
    # PGD turns towards the optimum by a fixed share a step; the adaptive steps get there.
    assert torch.allclose(
        change, best.expand(5), rtol=3e-2 if "pgd" in name and region.name == "L2" else 2e-3
    )


@pytest.mark.parametrize("name", ["pgd", "apgd", "suite"])
def test_a_quadratic_score_rises_to_the_nearest_point_and_falls_to_the_farthest_corner(name):
    images, center, radius = draw(5), draw(1, seed=5), 0.1
    risen = attack_score(Hill(center), images, ADAPTIVE[name](Linf(radius)), -1).images
    nearest = torch.minimum(torch.maximum(center, images - radius), images + radius)
    assert torch.allclose(Hill(center)(risen), Hill(center)(nearest), atol=0.02)
    fallen = attack_score(Hill(center), images, ADAPTIVE[name](Linf(radius)), 1).images
    low, high = (images - radius).clamp_min(0), (images + radius).clamp_max(1)
    farthest = torch.where((low - center).abs() > (high - center).abs(), low, high)
    assert torch.allclose(Hill(center)(fallen), Hill(center)(farthest), rtol=0.03)


@pytest.mark.parametrize("region", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])
def test_square_gets_far_without_gradients(region):
    images = 0.3 + 0.4 * draw(4, size=8)
    weight = F.interpolate(
        draw(1, size=2, seed=3) - 0.5, scale_factor=4
    )  # blocks, which squares can follow
    best = region.radius * (weight.abs().sum() if region.name == "Linf" else weight.norm())
    few, many = (
        attack_score(Linear(weight), images, Square(region, queries=queries), 1).images
        for queries in (20, 4000)
    )
    gains = [((images - found) * weight).flatten(1).sum(1) / best for found in (few, many)]
    assert (gains[1] > gains[0]).all()
    assert (gains[1] > (0.95 if region.name == "Linf" else 0.5)).all()
    assert (region.norm(many - images) <= region.radius + 1e-6).all()


def test_square_climbs_what_carries_no_gradient():
    class Detached(Linear):
        def forward(self, images):
            return super().forward(images.detach())

    images = 0.3 + 0.4 * draw(4)
    found = attack_score(Detached(WEIGHT), images, Square(Linf(0.1), queries=50), 1)
    assert (found.values < Detached(WEIGHT)(images)).all()
    with pytest.raises(UserError, match="no gradient"):
        attack_score(Detached(WEIGHT), images, PGD(Linf(0.1)), 1)


@pytest.mark.parametrize("direction", [1, -1])
def test_the_suite_is_at_least_as_strong_as_each_member_and_as_the_published_attack(
    trained, direction
):
    net, inliers, _, outliers = trained
    images = (inliers if direction == 1 else outliers)[:3]
    region = Linf(8 / 255)
    suite = standard("8/255")
    for name, detector in (("pro-msp", PRO(MSP(net), steps=1)), ("odin", detectors.ODIN(net))):
        together = attack_score(detector, images, suite, direction)
        assert sum(together.wins().values()) == 3
        assert (region.norm(together.images - images) <= region.radius + 1e-6).all()
        singles = {
            **suite.on_detectors,
            "published": attacks.aloe_softmax(region),
            "msp": transferred(PGD(region)),
        }
        for member, attack in singles.items():
            alone = attack_score(detector, images, attack, direction)
            assert (direction * (together.values - alone.values) <= 1e-6).all(), (name, member)


def test_wins_name_the_member_whose_image_was_kept():
    images = 0.4 + 0.2 * draw(4)
    members = {"weak": PGD(Linf(0.01)), "strong": PGD(Linf(0.1), steps=10)}
    found = attack_score(Linear(WEIGHT), images, Suite(members), 1)
    assert found.wins() == {"clean": 0, "weak": 0, "strong": 4}
    assert attack_score(Linear(0 * WEIGHT), images, Suite(members), 1).wins()["clean"] == 4


class Proposal:
    """An attack that proposes what it is given, whole images or those of an index."""

    keeps_clean = True

    def __init__(self, *images):
        self.images = images

    def settings(self):
        return {"norm": "Linf", "radius": 0.1, "steps": 1, "restarts": 1}

    def on_score(self, detector, images, direction, indices):
        for proposed in self.images:
            yield Candidate(proposed[indices], "proposal")

    def on_label(self, net, images, labels, indices):
        yield from self.on_score(net, images, 1, indices)


STILL = PGD(Linf(0.1), steps=1, step_size=0.0, loss="margin", precision="float32")


@pytest.mark.parametrize("direction", [1, -1])
def test_finish_begins_at_the_worst_image_of_all_members(direction):
    images = 0.4 + 0.2 * draw(6)
    darker = images - 0.05 * (draw(6, seed=1) > 0.3)
    lighter = images + 0.05 * (draw(6, seed=2) > 0.3)
    suite = Suite({"one": Proposal(darker), "other": Proposal(lighter)}, finish=STILL)
    candidates = list(suite.on_score(Linear(WEIGHT), images, direction, torch.arange(6)))
    scores = torch.stack([Linear(WEIGHT)(x) for x in (images, darker, lighter)])
    worst = (direction * scores).amin(0)
    assert [candidate.member for candidate in candidates] == ["one", "other", "finish"]
    torch.testing.assert_close(direction * Linear(WEIGHT)(candidates[-1].images), worst)


def test_finish_goes_on_where_the_classifier_is_still_correct(trained):
    net, inliers, labels, _ = trained
    moved = (inliers + 0.08 * torch.randn(inliers.shape).sign()).clamp(0, 1)
    suite = Suite({}, {"one": Proposal(moved)}, finish=STILL)
    *_, last = suite.on_label(net, inliers, labels, torch.arange(len(inliers)))
    with torch.no_grad():
        clean = losses.margin(net(inliers), labels)
        reached = losses.margin(net(moved), labels)
        worst = torch.minimum(clean, reached)
        standing = worst >= 0
        finished = losses.margin(net(last.images), labels)
    assert last.member == "finish"
    assert standing.any()
    torch.testing.assert_close(finished[standing], worst[standing])


def test_finish_counts_as_steps_of_the_suite():
    members = {"pgd": PGD(Linf(0.1), steps=7, restarts=2)}
    assert Suite(members, members, finish=STILL).settings()["steps"] == 15
    assert Suite(members, members, finish=STILL).settings_on_classifiers()["steps"] == 15


def test_a_transferred_attack_hands_over_what_its_source_found(trained):
    net, inliers, _, _ = trained
    opposite = InputNoise(Energy(net), 0.0)
    opposite.forward = lambda images: -Energy(net)(images)  # what hurts MSP helps this score
    region = Linf(8 / 255)
    handed = attack_score(opposite, inliers, transferred(PGD(region, steps=5), "softmax"), 1)
    assert "clean" not in handed.members
    assert (handed.values > opposite(inliers)).float().mean() > 0.9
    kept = attack_score(opposite, inliers, PGD(region, steps=5, objective="softmax"), 1)
    assert (kept.values <= opposite(inliers)).all()


def test_the_attack_through_pro_beats_the_one_transferred_from_its_base(trained):
    net, _, _, outliers = trained
    detector, region = PRO(MSP(net), steps=3, step_size=0.02), Linf(8 / 255)
    adaptive = attack_score(detector, outliers, PGD(region, steps=20), -1).values
    blind = attack_score(
        detector, outliers, PGD(region, steps=20, objective="unmoved", keep="last"), -1
    ).values
    assert adaptive.mean() >= blind.mean()


def test_mean_strength_grows_with_the_radius(trained):
    net, inliers, _, _ = trained
    means = [
        attack_score(MSP(net), inliers, PGD(Linf(radius), steps=10), 1).values.mean()
        for radius in (0.0, 0.01, 0.03, 0.1)
    ]
    assert means == sorted(means, reverse=True)
    assert means[3] < means[0] - 0.1


SMALL = Suite(
    {"pgd": PGD(Linf(0.05), restarts=2), "features": PGD(Linf(0.05), objective="features")}
)


@pytest.mark.parametrize(
    "attack", [apgd(L2(0.5), steps=8), Square(L2(0.5), 15), Square(Linf(0.1), 15), SMALL]
)
def test_an_image_is_attacked_the_same_in_any_batch(trained, attack):
    net, inliers, _, _ = trained
    detector, images = PRO(MSP(net)), inliers[:4]
    whole = attacks.lower_score(detector, images, attack, indices=torch.arange(10, 14))
    parts = [
        attacks.lower_score(detector, images[i : i + 1], attack, indices=torch.tensor([10 + i]))
        for i in range(4)
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-4)


def test_flags_and_gradients_are_left_alone(trained):
    net, inliers, labels, _ = trained
    net.train()
    try:
        attacks.raise_score(MSP(net), inliers[:2], standard(0.02))
        attacks.misclassify(net, inliers[:2], labels[:2], standard(0.02))
        assert all(part.training for part in net.modules())
    finally:
        net.eval()
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr", "dlr_or_margin"])
def test_attacks_on_the_classifier_lower_its_margin(trained, loss):
    net, inliers, labels, _ = trained
    found = attacks.misclassify(net, inliers, labels, PGD(Linf(0.1), steps=10, loss=loss))
    assert (losses.margin(net(found), labels) < losses.margin(net(inliers), labels)).all()


def test_the_classifier_suite_leaves_no_more_correct_than_any_member(trained):
    net, inliers, labels, _ = trained
    inliers, labels, suite = inliers[:8], labels[:8], standard(0.06)
    correct = (net(attacks.misclassify(net, inliers, labels, suite)).argmax(1) == labels).sum()
    for member in suite.on_classifiers.values():
        alone = attacks.misclassify(net, inliers, labels, member)
        assert correct <= (net(alone).argmax(1) == labels).sum()


def test_dlr_below_three_classes_is_refused(make_net):
    net = make_net(classes=2, dtype=torch.float32)
    with pytest.raises(UserError, match="DLR needs at least 3 classes"):
        attacks.misclassify(net, draw(2), torch.tensor([0, 1]), PGD(Linf(0.1), loss="dlr"))
    labels = torch.tensor([0, 1])
    attacks.misclassify(net, draw(2), labels, standard(0.1))
    either, margin = (
        attacks.misclassify(net, draw(2), labels, PGD(Linf(0.1), loss=loss))
        for loss in ("dlr_or_margin", "margin")
    )
    assert torch.equal(either, margin)


def test_targeted_raises_a_class_other_than_the_first(trained):
    net, _, _, outliers = trained
    attack = Targeted(apgd(Linf(0.1), steps=20), classes=4)
    candidates = list(attack.on_score(MSP(net), outliers, -1, torch.arange(len(outliers))))
    assert len(candidates) == 4
    order = net(outliers).argsort(1, descending=True)
    for rank, candidate in enumerate(candidates):
        assert (net(candidate.images).argmax(1) == order[:, rank]).float().mean() > 0.8


def test_targeted_brings_inliers_to_a_boundary(trained):
    net, inliers, _, _ = trained
    found = attack_score(MSP(net), inliers, Targeted(apgd(Linf(0.1), steps=20), classes=3), 1)
    with torch.no_grad():
        clean = MSP(net)(inliers)
    assert (found.values < clean - 0.1).float().mean() > 0.8


def test_mistakes_in_targeted(trained):
    _, inliers, _, _ = trained
    with pytest.raises(UserError, match="classes: -3"):
        Targeted(apgd(Linf(0.1)), classes=-3)

    class Alone(Detector):
        def forward(self, images):
            return images.flatten(1).sum(1)

    with pytest.raises(UserError, match="reads no classifier"):
        attack_score(Alone(), inliers, Targeted(apgd(Linf(0.1))), 1)


def test_expectation_averages_over_fresh_noise():
    images = draw(3)
    seen = []

    def objective(x):
        seen.append((x - images).clone())
        return x.flatten(1).square().sum(1)

    mean = expected(objective, sigma=0.1, draws=500, seed=0)
    values = mean(images)
    noise = torch.stack(seen)
    assert abs(noise.std() - 0.1) < 0.005
    assert torch.allclose(values, images.flatten(1).square().sum(1) + 48 * 0.01, rtol=0.02)
    assert not torch.equal(mean(images), values)


def test_expectation_finds_the_way_through_a_noisy_score():
    class Noisy(Linear):
        draws = torch.Generator().manual_seed(0)

        def forward(self, images):
            slope = 1 + 4 * torch.randn((), generator=self.draws)
            return slope * super().forward(images)

    images, detector = 0.4 + 0.2 * draw(4), Noisy(WEIGHT)

    def gain(attack):
        found = next(iter(attack.on_score(detector, images, 1, torch.arange(4)))).images
        return ((images - found) * WEIGHT).flatten(1).sum(1).mean()

    # Constant steps: momentum averages over draws itself.
    settings = {"region": Linf(0.1), "steps": 10, "step_size": 0.025, "keep": "last"}
    assert gain(PGD(**settings, noise_draws=64)) > gain(PGD(**settings)) + 0.05


def test_low_resolution_is_the_attack_on_the_resized_score():
    class Resized(Linear):
        def forward(self, images):
            return super().forward(F.interpolate(images, size=(8, 8), mode="bilinear"))

    weight, small = draw(1, size=8, seed=2) - 0.5, 0.4 + 0.2 * draw(3, size=4)
    large = F.interpolate(small, size=(8, 8), mode="bilinear")
    pgd = PGD(Linf(0.05), steps=10)
    found = attack_score(Linear(weight), large, LowResolution(pgd, 4), 1).images
    expected_images = attack_score(Resized(weight), small, pgd, 1).images
    assert torch.allclose(
        Linear(weight)(found), Resized(weight)(expected_images), atol=0.02
    )  # downsizing what was enlarged smooths it a little, and the closed form of the optimum is the same
    assert (found - large).abs().max() <= 0.05 + 1e-6


def test_low_resolution_attacks_classifiers_too(trained):
    net, inliers, labels, _ = trained
    found = attacks.misclassify(net, inliers, labels, LowResolution(PGD(Linf(0.1)), 4))
    assert (
        losses.margin(net(found), labels).mean() < losses.margin(net(inliers), labels).mean() - 0.1
    )


def test_the_encoder_attack_matches_features_of_paired_images(trained):
    net, inliers, _, _ = trained
    starts = torch.rand(inliers.shape, generator=torch.Generator().manual_seed(4))
    encode = attacks.encoder(net)
    matched = attacks.EncoderAttack(L2(10.0), steps=300).match(encode, starts, inliers)
    before = attacks.mape(encode(starts), encode(inliers))
    after = attacks.mape(encode(matched), encode(inliers))
    assert after.mean() < 0.1 * before.mean()
    assert (matched - starts).flatten(1).norm(dim=1).max() <= 10.0 + 1e-4
    clean, attacked = Energy(net)(inliers), Energy(net)(matched)
    assert (attacked - clean).abs().mean() < 0.2 * (Energy(net)(starts) - clean).abs().mean()


def test_the_encoder_attack_matches_true_scores_where_the_surrogate_lies_elsewhere(trained):
    class Shifted(Energy):
        """A score that is flat above a bound, with a surrogate that is not and has another scale
        and origin.
        """

        def score(self, out):
            return super().score(out).clamp_max(6.0)

        def surrogate_score(self, out):
            return 3 * super().score(out) - 100 * out.features.detach().mean(1)

    net, inliers, _, _ = trained
    detector, starts = (
        Shifted(net),
        torch.rand(inliers.shape, generator=torch.Generator().manual_seed(4)),
    )
    encode = attacks.encoder(detector, "score")
    assert torch.allclose(encode(starts)[:, 0], detector(starts), atol=1e-4)
    matched = attacks.EncoderAttack(L2(10.0), steps=200).match(encode, starts, inliers)
    error = (detector(matched) - detector(inliers)).abs()
    assert error.max() < 0.1 < (detector(starts) - detector(inliers)).abs().mean()


def test_mape_by_hand():
    codes, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[2.0, -4.0], [0.0, 1.0]])
    assert attacks.mape(codes, targets).tolist() == [(1 + 6) / 2 / 4, 0.5]


@pytest.mark.parametrize("name", sorted(set(attacks.REGISTRY) - {"patch", "universal"}))
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_every_registered_attack_stays_in_its_budget(trained, name, norm):
    net, inliers, labels, _ = trained
    size = {"size": 4} if name == "pgd-low-resolution" else {}
    radius = {"Linf": 0.05, "L2": 0.5}[norm]
    if size and norm == "L2":
        with pytest.raises(UserError, match="attack: an L2 perturbation grows"):
            attacks.build(name, norm=norm, radius=radius, **size)
        return
    attack = attacks.build(name, norm=norm, radius=radius, **size)
    settings = attack.settings()
    assert (settings["norm"], settings["radius"]) == (norm, radius)
    assert settings["steps"] >= 1
    found = attacks.lower_score(MSP(net), inliers[:3], attack)
    fooled = attacks.misclassify(net, inliers[:3], labels[:3], attack)
    for images in (found, fooled):
        change = (images - inliers[:3]).flatten(1)
        length = change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)
        assert (length <= radius + 1e-5).all()
        assert images.min() >= 0
        assert images.max() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: standard(0.1, norm="L0"), "norm: unknown name 'L0'"),
        (lambda: standard(0.0), "radius: 0"),
        (lambda: PGD(Linf(0.1), keep="last", restarts=2), "restarts: 2"),
        (lambda: PGD(Linf(0.1), objective="softmx"), "did you mean 'softmax'"),
        (lambda: PGD(Linf(0.1), loss="ce"), "loss: expected one of .*, got 'ce'"),
        (lambda: Square(Linf(0.1), queries=0), "queries: 0"),
        (lambda: Square(Unbounded()), "Square knows Linf and L2"),
        (lambda: attacks.build("appgd"), "did you mean 'apgd'"),
        (lambda: attacks.encoder(nn.Linear(2, 2), "score"), "code: 'score'"),
    ],
)
def test_mistakes_are_named(wrong, message):
    with pytest.raises(UserError, match=message):
        wrong()
