"""No detector is robust merely because its gradient is missing: each, on digits, attacked through
itself.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robust_ood import Linf, detectors
from robust_ood.attacks import (
    PGD,
    Suite,
    aloe_mahalanobis,
    aloe_softmax,
    attack_score,
    lower_score,
    precision,
    raise_score,
    standard,
)
from robust_ood.data.sources.digits import digits, photograph_patches
from robust_ood.detectors import surface_of
from robust_ood.evaluation import sanity
from robust_ood.metrics import auroc
from robust_ood.models import Normalize, WordFeatures

COUNT = 20
ATTACK = PGD(Linf(4 / 255), steps=6)


class DigitNet(nn.Module):
    feature_layers = ("first", "second")

    def __init__(self):
        super().__init__()
        self.normalize = Normalize((0.3,) * 3, (0.3,) * 3)
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.drop = nn.Dropout2d(0.2)  # in eval mode, for `mc-dropout` alone
        self.head = nn.Linear(32 * 4, 10)

    def forward(self, images):
        maps = torch.relu(self.second(self.drop(torch.relu(self.first(self.normalize(images))))))
        return self.head(F.adaptive_avg_pool2d(maps, 2).flatten(1))


def small(images, count):
    floats = torch.from_numpy(images.images[:count]).permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(floats, 2)  # 16 x 16


@pytest.fixture(scope="module")
def digit_problem():
    """A network trained on digits, batches to fit on, inliers, outliers, and both after an attack
    on its MSP.
    """
    train, labels = small(digits("train"), 800), torch.from_numpy(digits("train").labels)[:800]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DigitNet().eval()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(60):
            chosen = torch.randint(len(train), (64,))
            optimizer.zero_grad()
            F.cross_entropy(net(train[chosen]), labels[chosen]).backward()
            optimizer.step()
    net.eval()
    inliers, outliers = (
        small(digits("test"), COUNT),
        small(photograph_patches("flower", COUNT, "flower"), COUNT),
    )
    msp = detectors.MSP(net)
    transferred = lower_score(msp, inliers, ATTACK), raise_score(msp, outliers, ATTACK)
    loader = list(zip(train.split(400), labels.split(400), strict=True))
    return net, loader, inliers, outliers, transferred


# Others have tests of their own: tests/unit/test_generative.py, test_training_outliers.py.
OF_OTHER_NETWORKS = ("complexity", "discriminator", "likelihood", "outlier-class", "reconstruction")
NAMES = [name for name in detectors.REGISTRY if name not in OF_OTHER_NETWORKS]
# Attacks on them lose strength in bfloat16.
REFUSE = {
    "ash-p",
    "ash-b",
    "ash-s",
    "gram",
    "gradient-norm",
    "knn",
    "combood",
    "mahalanobis-layers",
    "nac",
    "adascale-a",
    "adascale-l",
}
# Scores of energy-based classifiers. On an ordinary one they may take outliers for inliers, which
# the sanity checks say.
ENERGIES = {"gradient-norm"}
SETTINGS = {
    "knn": {"neighbours": 5},
    "combood": {"neighbours": 5},
    "safe-spot": {"method": "fgsm", "attack_steps": 3},
    "mean": {"scores": ["msp", "mahalanobis", "gradnorm"]},
    "ross": {"draws": 16, "gradient_draws": 8},
    "smoothed": {"draws": 16, "gradient_draws": 8},
    "corp": {"random_features": 256},
    "weiper": {"repeats": 10},
    "mc-dropout": {"draws": 4},
    "feature-dropout": {"draws": 4},
}


def zero_shot(net, loader, groups=1, **settings):
    """Return a score of cosines of the logits to classes 0-7 and to a mean outlier of each group."""
    embeddings, labels = net(torch.cat([x for x, _ in loader])), torch.cat([y for _, y in loader])
    means = torch.stack([embeddings[labels == label].mean(0) for label in range(10)]).detach()
    flower = small(photograph_patches("flower", 60, "flower"), 60)[COUNT:]
    names = tuple(f"digit {label}" for label in range(10))
    flowers = torch.stack([part.mean(0) for part in net(flower).detach().chunk(groups)])
    others = tuple(f"flower {number}" for number in range(groups))
    known = WordFeatures(means, flowers, 10.0, names, others)
    return detectors.ZeroShot(net, known, groups=groups, **settings)


def build(name, net, loader):
    if name == "deep-ensemble":
        return detectors.DeepEnsemble([net, net], sizes=[None, 12])
    if name == "ensemble-msp":
        return detectors.DeepEnsemble([net, net], "msp", sizes=[None, 12])
    if name == "zero-shot":
        return zero_shot(net, loader)
    if name == "neglabel":
        return zero_shot(net, loader, groups=2, rule="softmax")
    noise = torch.rand(200, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return detectors.build(name, net, **SETTINGS.get(name, {})).fit(loader, outliers=[noise])


@pytest.fixture(scope="module")
def built(digit_problem):
    """Return the detector of a name: the same for all tests, which leave it as it is."""
    net, loader, *_ = digit_problem
    return functools.cache(lambda name: build(name, net, loader))


@pytest.mark.parametrize("name", [*NAMES, "ensemble-msp"])
def test_an_attack_through_a_detector_is_at_least_as_strong_as_one_transferred_from_msp(
    digit_problem, built, name
):
    _, _, inliers, outliers, (lost_elsewhere, hidden_elsewhere) = digit_problem
    detector = built(name)
    lost, hidden = lower_score(detector, inliers, ATTACK), raise_score(detector, outliers, ATTACK)
    assert (lost - inliers).abs().amax() <= 4 / 255 + 1e-6
    assert (hidden - outliers).abs().amax() <= 4 / 255 + 1e-6
    with torch.no_grad():
        clean, low, low_elsewhere = (detector(x) for x in (inliers, lost, lost_elsewhere))
        clean_out, high, high_elsewhere = (
            detector(x) for x in (outliers, hidden, hidden_elsewhere)
        )
    slack = 1e-4 * clean.std()
    assert (low <= clean + slack).all()  # of each image
    assert (high >= clean_out - slack).all()
    assert low.mean() < clean.mean() - slack
    assert high.mean() > clean_out.mean() + slack
    assert low.mean() <= low_elsewhere.mean() + slack
    assert high.mean() >= high_elsewhere.mean() - slack


def gains(detector, clean, attacked, scale):
    """How far inliers fell and outliers rose under each of several attacks, on average, in units of
    `scale`: `(A, 2)`.

    Args:
        clean: the scores of both sides, `2 x (N,)`.
        attacked: the images of both sides for each of the attacks.
    """
    with torch.no_grad():
        scores = [
            detector(torch.cat(images)).view(len(attacked), -1)
            for images in zip(*attacked, strict=True)
        ]
    sides = zip((1, -1), clean, scores, strict=True)
    return torch.stack(
        [direction * (before - after).mean(1) / scale for direction, before, after in sides], 1
    )


class FirstSurrogate(detectors.Wrapper):
    """A detector whose attackers follow the first surrogate alone."""

    def forward(self, images):
        return self.detector(images)

    def surrogate(self, images):
        return self.detector.surrogate(images)


def test_no_attack_transferred_from_another_detector_is_clearly_stronger(digit_problem, built):
    """Nor do the other surrogates do the work of a missing gradient."""
    _, _, *sides, _ = digit_problem
    chosen = {name: built(name) for name in [*NAMES, "ensemble-msp"]}

    def attacked(detector):
        return lower_score(detector, sides[0], ATTACK), raise_score(detector, sides[1], ATTACK)

    images = {name: attacked(detector) for name, detector in chosen.items()}
    weak = []
    for name, detector in chosen.items():
        with torch.no_grad():
            clean = [detector(side) for side in sides]
        first, *found = gains(
            detector, clean, [attacked(FirstSurrogate(detector)), *images.values()], clean[0].std()
        )
        found = dict(zip(images, found, strict=True))
        if not (first >= 0.6 * found[name]).all():
            weak.append(f"{name}: first surrogate")
        weak += [
            f"{name}: {other}" for other in images if not (found[name] >= 0.9 * found[other]).all()
        ]
    assert not weak


@pytest.mark.parametrize("name", [*NAMES, "ensemble-msp"])
def test_attacks_in_the_precision_that_a_detector_bears_are_as_strong_as_in_float32(
    digit_problem, built, name, monkeypatch
):
    _, _, inliers, outliers, _ = digit_problem
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    detector = built(name)
    found = {}
    for setting in ("auto", "float32"):
        attack = replace(ATTACK, precision=setting)
        low, high = (
            attack_score(detector, inliers, attack, 1),
            attack_score(detector, outliers, attack, -1),
        )
        assert low.precisions == (
            "float32" if setting == "float32" or name in REFUSE else "bfloat16",
        )
        found[setting] = auroc(low.values, high.values), low.values.mean(), high.values.mean()
    (fast, fast_low, fast_high), (exact, exact_low, exact_high) = found["auto"], found["float32"]
    assert fast <= exact + 0.01
    assert fast_low - exact_low <= 0.01 * exact_low.abs()
    assert exact_high - fast_high <= 0.01 * exact_high.abs()


def test_what_gram_adds_inside_the_range_does_not_drown_what_lies_outside(digit_problem, built):
    _, _, inliers, outliers, _ = digit_problem
    detector = built("gram")
    images = torch.cat([inliers, outliers])
    with torch.no_grad():
        added = detector.surrogate(images) - detector(images)
    values = detector.low.shape[
        1
    ]  # each adds a twentieth at most, divided by its layer's mean deviation
    assert (added >= -1e-4).all()
    assert (added <= 0.05 * values / detector.expected.min()).all()


def short(attack, steps=2):
    """Make an attack a short one of the same kind."""
    if hasattr(attack, "search") and hasattr(attack, "classes"):
        return replace(attack, attack=short(attack.attack), classes=2)
    return (
        replace(attack, queries=3) if hasattr(attack, "queries") else replace(attack, steps=steps)
    )


@pytest.mark.parametrize("direction", [1, -1], ids=["inliers", "outliers"])
@pytest.mark.parametrize("name", [*NAMES, "ensemble-msp"])
def test_the_standard_suite_is_at_least_as_strong_as_its_members_and_the_published_attacks(
    digit_problem, built, name, direction
):
    _, _, inliers, outliers, _ = digit_problem
    detector, images, radius = built(name), (inliers if direction == 1 else outliers)[:3], 4 / 255
    full = standard(radius).on_detectors
    # The published trajectories stay whole, or the published attacks would be other ones.
    members = {
        key: member if key.startswith("aloe") else short(member) for key, member in full.items()
    }
    rivals = {
        **members,
        "Alg. 1": aloe_softmax(Linf(radius)),
        "Alg. 2": aloe_mahalanobis(Linf(radius)),
    }
    together = attack_score(detector, images, Suite(members), direction)
    assert sum(together.wins().values()) == 3
    slack = 1e-5 * detector(inliers).detach().std()
    for rival, attack in rivals.items():
        if rival == "targeted" and direction == 1:
            continue  # nothing to propose against inliers
        alone = attack_score(detector, images, attack, direction)
        assert (direction * (together.values - alone.values) <= slack).all(), rival


@pytest.mark.parametrize("name", [*NAMES, "ensemble-msp"])
def test_no_alarm_is_raised(digit_problem, built, name):
    _, _, inliers, outliers, _ = digit_problem
    reported = standard("4/255"), PGD(Linf("4/255"), steps=10)
    alarms = sanity.check(built(name), inliers, outliers, *reported)
    if name in ENERGIES:
        assert all("clean AUROC" in alarm for alarm in alarms)
        return
    assert alarms == []


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_gradients_are_finite_also_where_the_network_saturates(
    digit_problem, built, name
):
    net, loader, inliers, outliers, _ = digit_problem
    if name == "deep-ensemble":
        pytest.skip("made of networks, not of one")
    net, detector = copy.deepcopy((net, built(name)))  # whose weights grow below
    assert any(part is net for part in detector.modules())
    extreme = torch.stack(
        [torch.zeros(3, 16, 16), torch.ones(3, 16, 16), loader[0][0][0]]
    )  # the last is in KNN's bank
    images = torch.cat([inliers[:4], outliers[:4], extreme]).requires_grad_()
    with torch.no_grad():
        scores = detector(images)
    assert scores.dtype == torch.float32
    assert scores.shape == (11,)
    assert scores.isfinite().all()
    net.head.weight.data.mul_(30)  # margins of hundreds
    for surrogate in surface_of(detector).surrogates:
        values = surrogate(images)
        (gradient,) = torch.autograd.grad(values.sum(), images)
        assert values.isfinite().all()
        assert gradient.isfinite().all()
    alive = (
        torch.autograd.grad(surface_of(detector).surrogates[-1](images).sum(), images)[0]
        .flatten(1)
        .abs()
        .amax(1)
    )
    assert (alive[:8] > 0).all()


@pytest.mark.parametrize("name", [*NAMES, "ensemble-msp"])
def test_a_score_depends_neither_on_the_batch_nor_on_the_precision(digit_problem, built, name):
    _, _, inliers, outliers, _ = digit_problem
    detector, images = built(name), torch.cat([inliers[:3], outliers[:3]])
    precise = copy.deepcopy(detector).double()
    with torch.no_grad():
        together = detector(images)
        alone = torch.cat([detector(image[None]) for image in images])
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(precise(images.double()).float(), together, rtol=1e-3, atol=1e-5)
