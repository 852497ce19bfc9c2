"""Certificates: closed forms, coverage, order, sharing of passes, and every mistake in one line."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm
from torch import nn

from robust_ood import certify, detectors, metrics, safe_spots
from robust_ood.attacks import PGD, lower_score, raise_score
from robust_ood.certify.confidence import Ranks, bounding_ranks, fair_coin_p_value
from robust_ood.detectors import MSP, Energy, MaxLogit, Mean, Smoothed
from robust_ood.detectors.contract import Detector, OutputsDetector
from robust_ood.errors import UserError
from robust_ood.regions import L2

SIGMA = 0.25


class Linear(Detector):
    """The scalar product with a fixed image."""

    def __init__(self, shape=(1, 2, 3), seed=0):
        super().__init__()
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight)

    def forward(self, images):
        return (images * self.weight).flatten(1).sum(1).float()

    @property
    def length(self):
        return float(self.weight.norm())


class Random(Detector):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.flatten(1).mean(1) * self.calls


class Counting(nn.Module):
    """A network that counts its images and remembers the most that came together."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3)
        self.images = 0
        self.most = 0

    def forward(self, images):
        self.images += len(images)
        self.most = max(self.most, len(images))
        return self.head(images.flatten(1))


def uniform(count, shape=(1, 2, 3), seed=0):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


# --- closed forms


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.8])
def test_the_quantile_of_a_linear_score_is_the_closed_one(quantile):
    detector = Linear()
    images = uniform(7)
    smoothed = Smoothed(detector, SIGMA, 20_000, quantile)(images)
    exact = detector(images) + detector.length * SIGMA * norm.ppf(quantile)
    torch.testing.assert_close(smoothed, exact, rtol=0, atol=0.03 * SIGMA * detector.length)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("radius", [0.0, 0.1, 0.3])
def test_bounds_of_a_linear_score_are_its_extremes_in_the_ball(radius, quantile):
    """And not beyond them: the bound is tight, for the steepest direction attains it."""
    detector = Linear()
    images = uniform(3)
    bounds = certify.score_bounds(
        detector, images, radius=radius, sigma=SIGMA, draws=20_000, quantile=quantile
    )
    exact = detector(images) + detector.length * SIGMA * norm.ppf(quantile)
    reach = radius * detector.length
    for bound, sign in ((bounds.lower, -1), (bounds.upper, 1)):
        # The standard error of the quantile that is bounded, in the score's units.
        place = norm.ppf(quantile) + sign * radius / SIGMA
        error = math.sqrt(norm.cdf(place) * norm.sf(place) / 20_000) / norm.pdf(place)
        slack = 7 * error * SIGMA * detector.length  # 3.1 of the confidence, the rest of sampling
        torch.testing.assert_close(bound, exact + sign * reach, rtol=0, atol=slack)
    assert (bounds.lower <= exact - reach).all()
    assert (bounds.upper >= exact + reach).all()


@pytest.mark.parametrize("quantile", [0.5, 0.2])
def test_a_bound_fails_at_most_as_often_as_its_confidence_says(quantile):
    """The true extremes of a linear score are at the true quantiles: the hardest case there is."""
    detector = Linear(seed=3)
    image = uniform(1)
    alpha = 0.1
    center = float(detector(image)) + detector.length * SIGMA * norm.ppf(quantile)
    reach = 0.1 * detector.length
    held = torch.zeros(4)
    for seed in range(500):
        bounds = certify.score_bounds(
            detector,
            image,
            radius=0.1,
            sigma=SIGMA,
            draws=200,
            alpha=alpha,
            quantile=quantile,
            seed=seed,
        )
        held += torch.tensor(
            [
                bounds.lower.item() <= center - reach,
                bounds.upper.item() >= center + reach,
                bounds.clean_lower.item() <= center,
                bounds.clean_upper.item() >= center,
            ]
        )
    assert (held / 500 >= 1 - alpha).all()
    assert (held / 500 < 1).all()  # nor is the confidence wasted


@settings(max_examples=200)
@given(
    radius=st.floats(0, 2),
    draws=st.integers(1, 400),
    alpha=st.sampled_from([1e-6, 0.001, 0.05, 0.5]),
    quantile=st.sampled_from([0.01, 0.5, 0.93]),
)
def test_ranks_are_the_tightest_that_the_binomial_distribution_allows(
    radius, draws, alpha, quantile
):
    ranks = bounding_ranks(radius, SIGMA, draws, alpha, quantile)
    below = norm.cdf(norm.ppf(quantile) - radius / SIGMA)
    above = norm.cdf(norm.ppf(quantile) + radius / SIGMA)
    near = 1e-9  # of two computations of one probability

    def lower_fails(rank):
        return binom.cdf(rank - 1, draws, below)

    def upper_fails(rank):
        return binom.sf(rank - 1, draws, above)

    if ranks.lower is None:
        assert lower_fails(1) >= alpha - near
    else:
        assert lower_fails(ranks.lower) <= alpha + near
        assert ranks.lower == draws or lower_fails(ranks.lower + 1) >= alpha - near
    if ranks.upper is None:
        assert upper_fails(draws) >= alpha - near
    else:
        assert upper_fails(ranks.upper) <= alpha + near
        assert ranks.upper == 1 or upper_fails(ranks.upper - 1) >= alpha - near


@given(
    radius=st.floats(0, 1),
    alpha=st.sampled_from([1e-6, 0.001, 0.05]),
    quantile=st.sampled_from([0.05, 0.5, 0.9]),
)
def test_the_draws_said_to_be_needed_are_the_fewest_that_bound_both_sides(radius, alpha, quantile):
    needed = certify.draws_needed(radius, SIGMA, alpha, quantile)
    if needed > 1e5:
        return
    assert None not in bounding_ranks(radius, SIGMA, int(needed), alpha, quantile)
    if needed > 1:
        assert None in bounding_ranks(radius, SIGMA, int(needed) - 1, alpha, quantile)


@given(trials=st.integers(1, 300), share=st.floats(0, 1), alpha=st.sampled_from([0.001, 0.05]))
def test_clopper_pearson_is_scipys(trials, share, alpha):
    successes = round(share * trials)
    interval = binomtest(successes, trials).proportion_ci(1 - 2 * alpha, method="exact")
    assert certify.clopper_pearson_lower(successes, trials, alpha) == pytest.approx(interval.low)
    expected = binomtest(successes, trials).pvalue
    assert fair_coin_p_value(successes, trials) == pytest.approx(expected)


def test_what_the_draws_cannot_bound_is_unbounded():
    bounds = certify.score_bounds(Linear(), uniform(2), radius=[0.1, 40], sigma=SIGMA, draws=100)
    assert bounds.at(0.1).lower.isfinite().all()
    assert (bounds.at(40).lower == -math.inf).all()
    assert (bounds.at(40).upper == math.inf).all()
    rates = certify.certified_rates(bounds.at(40), bounds.at(40))
    assert rates == {"auroc": 0.0, "fpr95": 1.0, "detection_error": 0.5}
    assert bounding_ranks(40, SIGMA, 100, 0.001, 0.5) == Ranks(None, None)


# --- rates


LEVELS = st.lists(st.sampled_from([-math.inf, 0.0, 1.0, 2.0, math.inf]), min_size=1, max_size=30)


@given(LEVELS, LEVELS)
def test_certified_rates_are_their_definitions(id_lower, ood_upper):
    inliers = torch.tensor(id_lower)
    outliers = torch.tensor(ood_upper)
    pairs = [low > high for low in id_lower for high in ood_upper]
    assert certify.certified_auroc(inliers, outliers) == pytest.approx(sum(pairs) / len(pairs))
    fprs, errors = [], [0.5]
    for threshold in id_lower:
        tpr = sum(low >= threshold for low in id_lower) / len(id_lower)
        fpr = sum(high >= threshold for high in ood_upper) / len(ood_upper)
        errors.append((1 - tpr + fpr) / 2)
        if tpr >= 0.95:
            fprs.append(fpr)
    assert certify.certified_fpr95(inliers, outliers) == pytest.approx(min(fprs))
    assert certify.certified_detection_error(inliers, outliers) == pytest.approx(min(errors))


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    st.lists(st.integers(0, 3), min_size=40, max_size=40),
)
def test_no_scores_within_the_bounds_give_worse_rates(id_lower, ood_upper, moves):
    inliers = torch.tensor(id_lower).float()
    outliers = torch.tensor(ood_upper).float()
    moved = torch.tensor(moves).float()
    attacked = inliers + moved[: len(inliers)], outliers - moved[20 : 20 + len(outliers)]
    assert certify.certified_auroc(inliers, outliers) <= metrics.auroc(*attacked)
    assert certify.certified_fpr95(inliers, outliers) >= metrics.fpr95(*attacked)
    certified = certify.certified_detection_error(inliers, outliers)
    assert certified >= metrics.detection_error(*attacked) - 1e-12


# --- a trained network


@pytest.fixture(scope="module")
def certified(trained):
    """Bounds of two detectors of a trained network, on both sides, all holding together."""
    net, inliers, _, outliers = trained
    chosen = {"msp": MSP(net), "energy": Energy(net)}
    alpha = certify.bonferroni(0.001, len(inliers) + len(outliers))
    asked = {"radius": [0.05, 0.1], "sigma": 0.1, "draws": 2000, "alpha": alpha}
    return (
        chosen,
        certify.score_bounds(chosen, inliers, **asked),
        certify.score_bounds(chosen, outliers, **asked, indices=100 + torch.arange(24)),
    )


@pytest.mark.parametrize("name", ["msp", "energy"])
@pytest.mark.parametrize("radius", [0.05, 0.1])
def test_certified_is_at_most_attacked_is_at_most_clean(trained, certified, name, radius):
    _, inliers, _, outliers = trained
    chosen, id_bounds, ood_bounds = certified
    detector = Smoothed(chosen[name], 0.1, 200, gradient_draws=8)
    attack = PGD(L2(radius), steps=5)
    low = lower_score(detector, inliers, attack)
    high = raise_score(detector, outliers, attack)
    with torch.no_grad():
        clean = detector(inliers), detector(outliers)
        attacked = detector(low), detector(high)
    rates = certify.certified_rates(id_bounds[name].at(radius), ood_bounds[name].at(radius))
    assert 0.5 < rates["auroc"] <= metrics.auroc(*attacked) <= metrics.auroc(*clean)
    assert rates["fpr95"] >= metrics.fpr95(*attacked) >= metrics.fpr95(*clean)
    # Of each image: what the attack reached is within what is certified of it.
    found = certify.score_bounds(chosen[name], low, radius=0.0, sigma=0.1, draws=2000, seed=9)
    assert (found.upper >= id_bounds[name].at(radius).lower).all()
    one_side = [
        certify.certified_rates(id_bounds[name].at(radius), ood_bounds[name].at(radius), side)
        for side in ("inliers", "outliers", "none")
    ]
    assert all(side["auroc"] >= rates["auroc"] for side in one_side)
    assert one_side[2]["auroc"] >= max(side["auroc"] for side in one_side[:2])


def test_at_radius_zero_the_bounds_are_around_the_smoothed_value(trained, certified):
    net, inliers, *_ = trained
    _, id_bounds, _ = certified
    for bounds in id_bounds.values():
        assert (bounds.clean_lower <= bounds.value).all()
        assert (bounds.value <= bounds.clean_upper).all()
        assert (bounds.lower[1] <= bounds.lower[0]).all()
        assert (bounds.lower[0] <= bounds.clean_lower).all()
        assert (bounds.upper[1] >= bounds.upper[0]).all()
    value = Smoothed(MSP(net), 0.1, 4000)(inliers)
    assert (id_bounds["msp"].clean_lower <= value).all()
    assert (value <= id_bounds["msp"].clean_upper).all()


def test_bounds_depend_on_index_and_seed_and_not_on_the_batch(trained):
    net, inliers, *_ = trained
    asked = {"radius": "1/10", "sigma": 0.1, "draws": 300}
    detector = MSP(net)
    together = certify.score_bounds(detector, inliers[:6], **asked)
    chunk = certify.score_bounds(detector, inliers[2:5], **asked, indices=torch.arange(2, 5))
    small = certify.score_bounds(detector, inliers[:6], **asked, batch_size=7)
    assert torch.equal(chunk.lower, together.lower[2:5])
    assert torch.equal(chunk.value, together.value[2:5])
    torch.testing.assert_close(small.upper, together.upper)
    other = certify.score_bounds(detector, inliers[:6], **asked, seed=1)
    assert not torch.equal(other.value, together.value)
    same = torch.cat([inliers[:1], inliers[:1]])
    values = certify.score_bounds(detector, same, **asked).value
    assert values[0] != values[1]
    none = certify.score_bounds(detector, inliers[:0], **asked)
    assert none.lower.shape == none.value.shape == (0,)


def test_detectors_of_one_network_share_its_passes_in_bounded_batches():
    net = Counting().eval()
    images = uniform(4, (3, 2, 2))
    asked = {"radius": 0.1, "sigma": SIGMA, "draws": 1000, "batch_size": 128}
    certify.score_bounds(MSP(net), images, **asked)  # tries the network on two images
    net.images = 0
    alone = certify.score_bounds(MSP(net), images, **asked)
    one_detector = net.images
    net.images = 0
    chosen = {"msp": MSP(net), "energy": Energy(net), "maxlogit": MaxLogit(net)}
    together = certify.score_bounds(chosen, images, **asked)
    assert net.images == one_detector
    assert net.most == 128
    assert torch.equal(together["msp"].lower, alone.lower)
    net.images = 0
    classifier = certify.smoothed_classifier(net, SIGMA, n0=50, n=1000, batch_size=128)
    certificates, bounds = classifier.certify_with(chosen, images, radius=0.1)
    assert net.images == one_detector + 4 * 50
    assert torch.equal(bounds["energy"].upper, together["energy"].upper)
    assert torch.equal(certificates.radii, classifier.certify(images).radii)


@pytest.mark.parametrize("name", ["mahalanobis", "knn", "gram", "odin", "pro", "react", "mean"])
def test_any_detector_can_be_bounded(trained, name):
    net, inliers, labels, _ = trained
    given = {
        "knn": {"neighbours": 3},
        "gram": {"layers": "conv"},
        "mean": {"scores": ["msp", "energy"]},
    }
    detector = detectors.build(name, net, **given.get(name, {})).fit([(inliers, labels)])
    bounds = certify.score_bounds(detector, inliers[:2], radius=0.05, sigma=0.1, draws=40)
    assert (bounds.lower <= bounds.value).all()
    assert (bounds.value <= bounds.upper).all()
    assert bounds.lower.isfinite().all()


# --- the smoothed detector


def test_a_smoothed_score_is_a_function_of_the_image_alone(trained):
    net, inliers, *_ = trained
    detector = Smoothed(MSP(net), 0.1, 60)
    together = detector(inliers)
    torch.testing.assert_close(detector(inliers[3:4]), together[3:4])
    assert torch.equal(detector(inliers), together)
    assert not torch.equal(Smoothed(MSP(net), 0.1, 60, seed=1)(inliers), together)
    registered = detectors.build("smoothed", net, sigma=0.1, draws=60, temperature=1.0)
    assert torch.equal(registered(inliers), together)
    composed = detectors.build("smoothed", net, score="energy", draws=5)
    assert isinstance(composed.detector, Energy)


def test_memory_of_a_smoothed_score_does_not_grow_with_its_draws():
    net = Counting().eval()
    with torch.no_grad():
        Smoothed(MSP(net), SIGMA, 3000)(uniform(40, (3, 2, 2)))
    assert net.images == 3000 * 40 + 4  # on which every network, and every head, is tried once
    assert net.most <= 512


def test_an_attack_takes_fresh_noise_at_each_step_and_the_same_in_each_run(trained):
    net, inliers, *_ = trained
    detector = Smoothed(Energy(net), 0.1, 20, gradient_draws=4)
    surface = detector.attack_surface()
    assert not surface.exact
    first, second = surface.surrogates[0](inliers), surface.surrogates[0](inliers)
    assert not torch.equal(first, second)
    assert torch.equal(first, detector.surrogate(inliers))
    attack = PGD(L2(0.1), steps=3)
    assert torch.equal(
        lower_score(detector, inliers, attack), lower_score(detector, inliers, attack)
    )


# --- the smoothed classifier


class Halfspace(nn.Module):
    """Two classes, told apart by the first pixel."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2, bias=True)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.copy_(torch.tensor([0.5, -0.5]))

    def forward(self, images):
        return self.head(images.flatten(1)[:, :1])


def test_the_radius_of_a_half_space_is_the_distance_to_it():
    images = torch.full((3, 1, 1, 2), 0.5)
    images[0, 0, 0, 0] = 0.1
    images[1, 0, 0, 0] = 0.9
    classifier = certify.smoothed_classifier(Halfspace(), SIGMA, n=20_000)
    certificates = classifier.certify(images)
    assert certificates.classes.tolist() == [0, 1, certify.ABSTAINED]
    assert certificates.radii[2] == 0
    assert (certificates.radii[:2] < 0.4).all()
    assert (certificates.radii[:2] > 0.37).all()
    labels = torch.tensor([0, 0, 0])
    assert certificates.accuracy(labels) == pytest.approx(1 / 3)
    assert certificates.accuracy(labels, 0.3) == pytest.approx(1 / 3)
    assert certificates.accuracy(labels, 0.5) == 0
    assert classifier.predict(images).tolist() == [0, 1, certify.ABSTAINED]
    assert classifier.predict(images, abstain=False)[:2].tolist() == [0, 1]
    # All draws agree far away, and then the radius is the largest there is.
    far = certify.smoothed_classifier(Halfspace(), 0.01, n=1000, alpha=0.01).certify(images)
    assert far.radii[0] == pytest.approx(0.01 * norm.ppf(0.01 ** (1 / 1000)))


def test_no_attack_turns_a_certified_class(trained):
    net, inliers, labels, _ = trained
    classifier = certify.smoothed_classifier(net, 0.1, n=2000)
    certificates = classifier.certify(inliers)
    radius = 0.15
    attacked = classifier.attack(inliers, labels, radius, steps=4, restarts=2, samples=4)
    assert ((attacked - inliers).flatten(1).norm(dim=1) <= radius + 1e-5).all()
    after = classifier.predict(attacked, abstain=False)
    sure = certificates.radii > radius
    assert sure.float().mean() > 0.3
    assert torch.equal(after[sure], certificates.classes[sure])
    assert certificates.accuracy(labels, radius) <= (after == labels).float().mean()
    strong = classifier.attack(inliers, labels, 1.5, steps=4, samples=4)
    assert (classifier.predict(strong, abstain=False) == labels).float().mean() < 0.5


def test_safe_spots_of_the_smoothed_classifier_keep_their_radius(trained):
    net, inliers, *_ = trained
    images = inliers[:8]
    sigma = 0.4  # so much that votes are not unanimous
    classifier = certify.smoothed_classifier(net, sigma, n=1000)
    labels = classifier.predict(images, abstain=False)
    spots = safe_spots.search(
        net,
        images,
        0.3,
        "L2",
        "full",
        labels,
        steps=5,
        attack_steps=3,
        step_size=0.02,
        smoothing=safe_spots.Smoothing(sigma, 8),
    )
    before = classifier.certify(images)
    after = classifier.certify(spots)
    assert after.radii.mean() > before.radii.mean()


# --- mistakes


def bounds_of(net, **given):
    arguments = {"radius": 0.1, "sigma": 0.1, "draws": 100, **given}
    detector = arguments.pop("detector", None) or MSP(net)
    images = arguments.pop("images", torch.full((2, 3, 8, 8), 0.5))
    return certify.score_bounds(detector, images, **arguments)


MISTAKES = {
    "sigma 0": ({"sigma": 0}, "sigma: expected a standard deviation > 0"),
    "sigma < 0": ({"sigma": -0.1}, "sigma: expected a standard deviation > 0"),
    "sigma NaN": ({"sigma": math.nan}, "sigma: expected a number or a string, got nan"),
    "radius < 0": ({"radius": [0.1, -1]}, "radius: -1 is negative"),
    "no radius": ({"radius": []}, "radius: none given"),
    "radius in words": ({"radius": "far"}, "radius: 'far' is not a finite number"),
    "few draws": ({"draws": 9, "radius": 0.0}, "draws: 9 bound nothing .* 10 or more are needed"),
    "few draws far": ({"radius": 0.3}, r"draws: 100 bound nothing .* 5,\d\d\d or more are needed"),
    "too far": ({"radius": 5}, "draws: 100 bound nothing .* no feasible number does"),
    "no draws": ({"draws": 0}, "draws: expected a whole number >= 1, got 0"),
    "half a draw": ({"draws": 99.5}, "draws: expected a whole number"),
    "alpha": ({"alpha": 0.0}, r"alpha: expected a number in \(0, 1\), got 0.0"),
    "quantile": ({"quantile": 1}, r"quantile: expected a number in \(0, 1\), got 1"),
    "norm": ({"norm": "l2"}, "norm: unknown name 'l2'; did you mean 'L2'"),
    "Linf": (
        {"norm": "Linf", "radius": "8/255"},
        r"norm: Gaussian smoothing certifies L2, not Linf; .* L2 radius 0.4347 ",
    ),
    "batch_size": ({"batch_size": 0}, "batch_size: expected a whole number >= 1"),
    "indices": ({"indices": torch.arange(3)}, r"indices: shape \(3,\) for 2 images"),
    "float indices": ({"indices": torch.rand(2)}, "indices: expected whole numbers"),
    "pixels": ({"images": torch.full((2, 3, 8, 8), 255.0)}, "images: pixels are in"),
    "one image": ({"images": torch.zeros(3, 8, 8)}, "images: expected shape"),
    "random": ({"detector": Random()}, "detector: Random is random itself"),
    "random by name": ({"detector": {"mine": Random()}}, "mine: Random is random itself"),
    "no detector": ({"detector": "msp"}, "detector: expected a Detector or a mapping, got 'msp'"),
    "no detectors": ({"detector": [1]}, "detector: expected a Detector or a mapping, got a list"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(trained, mistake):
    given, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=f"^{message}") as refusal:
        bounds_of(trained[0], **given)
    assert "\n" not in str(refusal.value)


def test_what_is_smoothed_is_not_smoothed_again(trained):
    smoothed = Smoothed(MSP(trained[0]), 0.1)
    for detector in (smoothed, Mean([smoothed])):
        with pytest.raises(UserError, match=r"^detector: .* is smoothed already"):
            bounds_of(trained[0], detector=detector)
        with pytest.raises(UserError, match=r"^detector: .* is smoothed already"):
            Smoothed(detector, 0.1)


class NotANumber(OutputsDetector):
    def score(self, out):
        return out.logits[:, 0] * math.nan


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: Smoothed(net, 0.1), "detector: expected a [Dd]etector"),
        (lambda net: Smoothed(MSP(net), 0), "sigma: expected a standard deviation > 0"),
        (lambda net: Smoothed(MSP(net), 0.1, 0), "draws: expected a whole number"),
        (lambda net: Smoothed(MSP(net), 0.1, True), "draws: expected a whole number"),
        (lambda net: Smoothed(MSP(net), 0.1, quantile=0.0), "quantile: expected a number"),
        (lambda net: Smoothed(MSP(net), 0.1, gradient_draws=0), "gradient_draws: expected"),
        (lambda net: detectors.build("smoothed", net, sigma="x"), "detectors.smoothed.sigma: "),
        (lambda net: bounds_of(net, detector=NotANumber(net)), "detector: it gives NaN"),
        (lambda net: bounds_of(net).at(0.3), "radius: expected one of 0.1, got 0.3"),
        (lambda net: certify.smoothed_classifier(net, 0), "sigma: "),
        (lambda net: certify.smoothed_classifier("net", 1), "net: expected a torch.nn.Module"),
        (
            lambda net: certify.smoothed_classifier(net, 0.1, n=9),
            "n: 9 draws certify no class with alpha 0.001; 10 or more are needed",
        ),
        (lambda net: certify.smoothed_classifier(net, 0.1, n0=0), "n0: "),
        (lambda net: certify.smoothed_classifier(net, 0.1, alpha=1), "alpha: "),
        (lambda net: certify.bonferroni(0.1, 0), "bounds: "),
        (lambda net: certify.clopper_pearson_lower(1, 0, 0.1), "trials: "),
        (
            lambda net: certify.certified_auroc(torch.tensor([]), torch.tensor([1.0])),
            "id_lower: expected floats",
        ),
        (
            lambda net: certify.certified_fpr95(torch.ones(2), torch.tensor([math.nan])),
            "ood_upper: a bound is NaN",
        ),
        (
            lambda net: certify.certified_rates(bounds_of(net, radius=[0.1, 0.2]), bounds_of(net)),
            "inliers, outliers: expected bounds at one radius",
        ),
        (
            lambda net: certify.certified_rates(bounds_of(net), bounds_of(net, sigma=0.2)),
            "outliers: their bounds are of sigma 0.2",
        ),
        (
            lambda net: certify.certified_rates(bounds_of(net), bounds_of(net), "all"),
            "attacked: expected one of .*, got 'all'",
        ),
        (
            lambda net: (
                certify.smoothed_classifier(net, 0.1, n=50)
                .certify(torch.rand(2, 3, 8, 8))
                .accuracy(torch.zeros(3))
            ),
            "labels: shape",
        ),
    ],
)
def test_other_mistakes_are_named(trained, call, message):
    with pytest.raises(UserError, match=f"^{message}") as refusal:
        call(trained[0])
    assert "\n" not in str(refusal.value)
