"""Intervals and paired tests of the metrics: closed forms, coverage by simulation, other code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm

from robust_ood.errors import UserError
from robust_ood.metrics import (
    auroc,
    auroc_interval,
    delong_test,
    fpr95,
    fpr_interval,
    holm,
    mean_rate_interval,
    rate_interval,
)

Z = float(norm.ppf(0.975))


def normal(count: int, mean: float, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 1, count))


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 100), (5, 100), (100, 100), (500, 1000)])
def test_a_rate_has_scipys_exact_interval(count, total):
    expected = binomtest(count, total).proportion_ci(0.95, method="exact")
    assert rate_interval(count, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_none_of_a_hundred_is_not_none():
    """Issue of the bootstrap: it gives 0 to 0."""
    assert rate_interval(0, 100) == pytest.approx((0, 0.0362), abs=1e-4)
    low, high = fpr_interval(normal(1000, 20, 0), [normal(100, 0, 1)])
    assert low == 0
    assert high == pytest.approx(0.0362, abs=1e-4)
    low, high = auroc_interval(torch.arange(100.0) + 200, [torch.arange(100.0)])
    assert 0.97 < low < 0.99
    assert high == 1


def test_the_mean_of_one_rate_is_the_rate():
    assert mean_rate_interval([3], [40]) == pytest.approx(rate_interval(3, 40), abs=1e-12)


def test_the_interval_of_a_mean_over_equal_sets_is_as_that_of_one_large_set():
    """A mean of four rates of 250 images is known as well as a rate of 1,000."""
    low, high = mean_rate_interval([50] * 4, [250] * 4)
    pooled_low, pooled_high = rate_interval(200, 1000)
    assert low == pytest.approx(pooled_low, abs=0.003)
    assert high == pytest.approx(pooled_high, abs=0.003)


def delong_by_pairs(inliers: np.ndarray, outliers: np.ndarray) -> tuple[float, float]:
    """Return the AUROC and its variance from all pairs, as the paper writes them."""
    wins = (inliers[:, None] > outliers).astype(float) + 0.5 * (inliers[:, None] == outliers)
    of_inliers = wins.mean(1)
    of_outliers = wins.mean(0)
    variance = of_inliers.var(ddof=1) / len(inliers) + of_outliers.var(ddof=1) / len(outliers)
    return wins.mean(), variance


def test_the_interval_in_the_middle_is_delongs_on_the_logit_scale():
    inliers = 5 * normal(60, 0.2, 0)  # wide, so that DeLong's interval is the wider one
    outliers = normal(90, 0, 1)
    area, variance = delong_by_pairs(inliers.numpy(), outliers.numpy())
    width = Z * math.sqrt(variance) / (area * (1 - area))
    center = math.log(area / (1 - area))
    expected = [1 / (1 + math.exp(-(center + sign * width))) for sign in (-1, 1)]
    assert auroc_interval(inliers, [outliers]) == pytest.approx(tuple(expected), abs=1e-9)


COVERED = {
    "overlapping": lambda draws, n: (draws.normal(0.7, 1, n), draws.normal(0, 1, n)),
    "apart": lambda draws, n: (draws.normal(3.3, 1, n), draws.normal(0, 1, n)),
    "reversed": lambda draws, n: (draws.normal(-2.3, 1, n), draws.normal(0, 1, n)),
    "wide": lambda draws, n: (draws.normal(0.7, 5, n), draws.normal(0, 1, n)),
    "ties": lambda draws, n: (draws.integers(1, 5, n) * 1.0, draws.integers(0, 4, n) * 1.0),
}


@pytest.mark.parametrize("kind", COVERED)
@pytest.mark.parametrize("count", [16, 100, 1000])
def test_intervals_cover_the_truth_as_often_as_they_say(kind, count):
    """Of 95 % intervals at least 93 % do."""
    draws = np.random.default_rng(0)
    population = [torch.from_numpy(side) for side in COVERED[kind](draws, 400_000)]
    truth = auroc(*population), fpr95(*population)
    runs = 600
    covered = np.zeros(2)
    for _ in range(runs):
        inliers, outliers = (torch.from_numpy(side) for side in COVERED[kind](draws, count))
        intervals = auroc_interval(inliers, [outliers]), fpr_interval(inliers, [outliers])
        for index, (low, high) in enumerate(intervals):
            assert 0 <= low <= high <= 1
            covered[index] += low <= truth[index] <= high
    assert (covered / runs).min() >= 0.93


def test_the_interval_of_a_mean_over_sets_knows_that_they_share_the_inliers():
    """Two equal sets say no more than one, and two independent ones of few inliers little more."""
    inliers = normal(50, 1, 0)
    outliers = normal(5000, 0, 1)
    single = auroc_interval(inliers, [outliers])
    several = auroc_interval(inliers, [normal(5000, 0, seed) for seed in range(2, 8)])
    assert several[1] - several[0] > 0.9 * (single[1] - single[0])


def test_the_paired_test_is_delongs():
    """Against the paper's covariance, computed from all pairs."""
    inliers = normal(40, 1, 0)
    outliers = normal(70, 0, 1)
    other_inliers = inliers + 0.5 * normal(40, 0, 2)
    other_outliers = outliers + 0.5 * normal(70, 0, 3)
    found = delong_test([inliers, other_inliers], [[outliers], [other_outliers]])
    wins = [
        (ours.numpy()[:, None] > theirs.numpy()).astype(float)
        for ours, theirs in ((inliers, outliers), (other_inliers, other_outliers))
    ]
    covariance = (
        np.cov(np.stack([win.mean(1) for win in wins])) / 40
        + np.cov(np.stack([win.mean(0) for win in wins])) / 70
    )
    contrast = np.array([1, -1])
    deviation = math.sqrt(contrast @ covariance @ contrast)
    difference = auroc(inliers, outliers) - auroc(other_inliers, other_outliers)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(difference) / deviation), rel=1e-9)
    assert found.low == pytest.approx(difference - Z * deviation, abs=1e-9)


def test_equal_detectors_do_not_differ_and_a_constant_one_does():
    inliers = torch.arange(20.0) + 50
    outliers = torch.arange(30.0)
    same = delong_test([inliers, 2 * inliers], [[outliers], [2 * outliers]])
    assert same == (0, 0, 0, 1)
    blind = delong_test([inliers, torch.zeros(20)], [[outliers], [torch.zeros(30)]])
    assert blind.difference == 0.5
    assert blind.p_value == 2.0**-19


def test_the_paired_test_rejects_no_more_often_than_it_says():
    draws = np.random.default_rng(0)
    rejected = 0
    for _ in range(400):
        inliers = torch.from_numpy(draws.normal(1, 1, (3, 60)))
        outliers = torch.from_numpy(draws.normal(0, 1, (3, 60)))
        first = inliers[0] + inliers[1], outliers[0] + outliers[1]
        second = inliers[0] + inliers[2], outliers[0] + outliers[2]
        found = delong_test([first[0], second[0]], [[first[1]], [second[1]]])
        rejected += found.p_value < 0.05
    assert rejected / 400 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_holms_adjustment():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_mistakes_are_named():
    scores = torch.rand(5)
    with pytest.raises(UserError, match="ood_scores: expected the scores of one or more sets"):
        auroc_interval(scores, [])
    with pytest.raises(UserError, match=r"level: 1.5; accepted"):
        rate_interval(1, 2, 1.5)
    with pytest.raises(UserError, match=r"count: 3; accepted: an integer in 0\.\.2"):
        rate_interval(3, 2)
    with pytest.raises(UserError, match="id_scores: 5 and 4; expected the same images"):
        delong_test([scores, scores[:4]], [[scores], [scores]])
    with pytest.raises(UserError, match="ood_scores: expected those of two detectors, got 1"):
        delong_test([scores, scores], [[scores]])
