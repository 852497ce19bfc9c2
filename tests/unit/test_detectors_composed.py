"""Ensembles, means, safe spots, the search over settings, and names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from robust_ood import detectors, safe_spots
from robust_ood.errors import Notice, UserError
from tests.unit.test_detectors_fitting import OF_OTHER_NETWORKS


@pytest.fixture(scope="module")
def problem(make_net, make_images):
    net = make_net(dtype=torch.float32)
    return net, make_images(7, dtype=torch.float32), make_images(40, seed=3, dtype=torch.float32)


def test_a_deep_ensemble_scores_the_mean_softmax_at_each_network_s_resolution(problem, make_net):
    net, images, _ = problem
    other = make_net(seed=4, dtype=torch.float32)
    with torch.no_grad():
        larger = F.interpolate(images, (10, 10), mode="bilinear", antialias=True)
        p = (net(images).softmax(1) + other(larger).softmax(1)) / 2
        entropy = detectors.DeepEnsemble([net, other], sizes=[None, 10])
        torch.testing.assert_close(entropy.published(images), (p * p.log()).sum(1))
        torch.testing.assert_close(entropy(images), -(-(p * p.log()).sum(1)).log())
        msp = detectors.DeepEnsemble([net, other], "msp", sizes=[None, 10])
        torch.testing.assert_close(msp.published(images), p.amax(1))
        odds = p.amax(1) / (1 - p.amax(1))
        torch.testing.assert_close(msp.surrogate(images), msp(images))
        torch.testing.assert_close(msp(images), (odds * 3).log())
        assert [n(images).shape for n in entropy.networks] == [(7, 4), (7, 4)]


def test_a_mean_is_of_scores_and_standardised_members_weigh_the_same(problem):
    net, images, known = problem
    loader = list(known.split(16))
    members = [
        detectors.Standardize(detectors.MSP(net)),
        detectors.Standardize(detectors.Energy(net)),
    ]
    both = detectors.Mean(members).fit(loader)
    with torch.no_grad():
        for member in members:
            scores, surrogates = member(known), member.surrogate(known)
            for values in (scores, surrogates):
                torch.testing.assert_close(values.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
                torch.testing.assert_close(values.std(unbiased=False), torch.tensor(1.0))
        torch.testing.assert_close(both(images), (members[0](images) + members[1](images)) / 2)
    assert both.networks == (net,)


def test_standardising_keeps_a_fitted_detector_s_fit(problem):
    net, _, known = problem
    residual = detectors.Residual(net).fit([known[:20]])
    before = residual.complement.clone()
    detectors.Standardize(residual).fit([known[20:]])
    assert torch.equal(residual.complement, before)


@pytest.mark.parametrize(("method", "norm"), [("fgsm", "Linf"), ("pgd", "L2"), ("full", "Linf")])
def test_the_safe_spot_score_is_the_mix_of_the_paper(problem, method, norm):
    net, images, _ = problem
    detector = detectors.SafeSpot(net, 0.1, norm, method, share=0.3, attack_steps=3, steps=2)
    with torch.no_grad():
        labels = net(images).argmax(1)
    spots = safe_spots.search(net, images, 0.1, norm, method, steps=2, attack_steps=3)
    attacked = safe_spots.attack(net, spots, labels, 0.1, norm, steps=3)
    with torch.no_grad():
        expected = 0.3 * net(images).softmax(1).amax(1) + 0.7 * net(attacked).softmax(1).amax(1)
        torch.testing.assert_close(detector.published(images), expected)
        torch.testing.assert_close(detector(images), expected.logit())
        # An image's score is its own.
        torch.testing.assert_close(detector(images[3:4]), expected[3:4].logit())


def test_a_long_safe_spot_search_says_its_cost_once_a_size(problem, recwarn):
    net, images, _ = problem
    detector = detectors.SafeSpot(net)
    assert detector.passes == 100 * 21 + 20
    assert detectors.SafeSpot(net, method="pgd").passes == 40
    assert detectors.SafeSpot(net, method="fgsm", attack_steps=3).passes == 4
    detector._say_cost(images)
    assert not recwarn.list
    for _ in range(2):
        detector._say_cost(images.new_zeros(1, 3, 512, 300))
    (warning,) = recwarn.list
    assert issubclass(warning.category, Notice)
    assert "512 x 300 pixels takes 2,120 passes" in str(warning.message)


# --- search


class Affine(detectors.Detector):
    """The mean pixel, scaled: a detector whose best setting is known."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope = slope

    def forward(self, images):
        return self.slope * images.flatten(1).mean(1)


BRIGHT, DARK = (
    [torch.full((5, 3, 2, 2), v) for v in (0.8, 0.9)],
    [torch.full((4, 3, 2, 2), v) for v in (0.1, 0.2)],
)


def test_search_finds_the_best_point_and_reports_all():
    found = detectors.search(Affine, {"slope": [-1.0, 0.0, 2.0, 3.0]}, BRIGHT, DARK)
    assert found.settings == {"slope": 2.0}  # the first of the best
    assert found.value == 1.0
    assert found.detector.slope == 2.0
    assert [(t.settings["slope"], t.value) for t in found.trials] == [
        (-1.0, 0.0),
        (0.0, 0.5),
        (2.0, 1.0),
        (3.0, 1.0),
    ]
    assert found.report().splitlines()[2:] == [
        "| 2.0 | 1.0000 |",
        "| 3.0 | 1.0000 |",
        "| 0.0 | 0.5000 |",
        "| -1.0 | 0.0000 |",
    ]
    lowest = detectors.search(Affine, {"slope": [-1.0, 2.0]}, BRIGHT, DARK, metric="fpr95")
    assert (lowest.settings, lowest.value) == ({"slope": 2.0}, 0.0)


def test_a_search_that_changes_nothing_fails():
    with pytest.raises(UserError, match=r"all 3 points give auroc 1.000000; no effect of slope"):
        detectors.search(Affine, {"slope": [1.0, 2.0, 3.0]}, BRIGHT, DARK)


def test_a_search_that_sees_the_test_fails():
    with pytest.raises(UserError, match="ood_validation: 4 of its images are in a test set"):
        detectors.search(
            Affine,
            {"slope": [1.0, -1.0]},
            BRIGHT,
            DARK,
            test_sets=[[torch.rand(2, 3, 2, 2)], DARK[1:]],
        )
    detectors.search(
        Affine, {"slope": [1.0, -1.0]}, BRIGHT, DARK, test_sets=[[torch.rand(2, 3, 2, 2)]]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, BRIGHT, DARK), "grid: {} holds no point"),
        (({"slope": []}, BRIGHT, DARK), r"grid: {'slope': \[\]} holds no point"),
        (({"slope": [1.0]}, [], DARK), "id_validation: gives no images"),
        (({"slope": [1.0]}, BRIGHT, []), "ood_validation: gives no images"),
    ],
)
def test_mistakes_in_a_search_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        detectors.search(Affine, *arguments)
    with pytest.raises(
        UserError,
        match="metric: expected one of 'auroc', 'fpr95', got 'aurok'; did you mean 'auroc'",
    ):
        detectors.search(Affine, {"slope": [1.0]}, BRIGHT, DARK, metric="aurok")


# --- names


@pytest.mark.parametrize("name", [n for n in detectors.REGISTRY if n not in OF_OTHER_NETWORKS])
def test_every_point_of_a_registered_grid_can_be_built(problem, name):
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(108, 600), torch.nn.Linear(600, 4)
    )
    net.feature_layers = ("1",)
    entry = detectors.REGISTRY[name]
    assert entry.paper
    for setting, values in entry.ranges.items():
        for value in values:
            detectors.build(name, net, **{setting: value})


def test_wrappers_take_the_score_that_a_config_names(problem):
    net = problem[0]
    built = detectors.build_all(
        [
            {"name": "react", "score": "maxlogit", "percentile": 95},
            {"name": "pro", "score": {"name": "energy", "temperature": 2.0}, "steps": 5},
            {"name": "mean", "scores": ["msp", {"name": "knn", "neighbours": 3}]},
            "pro-msp-t",
        ],
        net,
    )
    assert isinstance(built["react"].detector, detectors.MaxLogit)
    assert built["react"].share == 0.95
    assert built["pro"].detector.temperature == 2.0
    assert built["pro"].steps == 5
    assert built["mean"].inside[1].detector.neighbours == 3
    assert float(built["pro-msp-t"].detector.temperature) == 10.0
    with pytest.raises(UserError, match="unknown name 'maxlogits'"):
        detectors.build("scale", net, score="maxlogits")
