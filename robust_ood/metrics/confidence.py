"""Confidence intervals without resampling, right at rates of 0 and 1 and for means over sets.

A bootstrap of scores that are all on the right side gives an interval of no length, however few
images there are. What stands here does not: 0 of 100 outliers accepted means at most 3.6 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betaincinv, expit, logit, ndtri
from scipy.stats import binom
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.metrics.counts import checked, least_count

Values = NDArray[np.float64]
Bounds = tuple[float, float]


@typed
def rate_interval(count: int, total: int, level: float = 0.95) -> Bounds:
    """Return the exact interval of a rate of which `count` of `total` images were seen.

    Source: Clopper and Pearson 1934; it covers the true rate at least with the stated confidence.

    Args:
        count: images of the kind, 0..total.
        total: images looked at, >= 1.
        level: confidence, in (0, 1).

    Returns:
        `(low, high)` in [0, 1].

    Raises:
        UserError: numbers outside these ranges.
    """
    check_level(level)
    if total < 1:
        raise UserError(f"total: {total}; accepted: an integer >= 1")
    if not 0 <= count <= total:
        raise UserError(f"count: {count}; accepted: an integer in 0..{total}")
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, total - count + 1, tail))
    high = 1.0 if count == total else float(betaincinv(count + 1, total - count, 1 - tail))
    return low, high


@typed
def mean_rate_interval(counts: Sequence[int], totals: Sequence[int], level: float = 0.95) -> Bounds:
    """Return the interval of the mean of independent rates, such as those of several OOD sets.

    Source: the distances of the exact limits from the rates are added in squares (MOVER; Zou and
    Donner 2008). Of one rate it is `rate_interval`.

    Args:
        counts: images of the kind, one number for each set.
        totals: images looked at, likewise.
        level: confidence, in (0, 1).

    Raises:
        UserError: as `rate_interval`; no set, or numbers of sets that differ.
    """
    if not counts or len(counts) != len(totals):
        raise UserError(
            f"totals: {len(totals)} numbers for {len(counts)} counts; expected one each"
        )
    rates = np.array(counts) / np.array(totals)
    limits = np.array(
        [rate_interval(count, total, level) for count, total in zip(counts, totals, strict=True)]
    )  # (S, 2)
    below = float(np.linalg.norm(rates - limits[:, 0])) / len(counts)
    above = float(np.linalg.norm(limits[:, 1] - rates)) / len(counts)
    mean = float(rates.mean())
    return max(0.0, mean - below), min(1.0, mean + above)


@typed
def auroc_interval(id_scores: Tensor, ood_scores: Sequence[Tensor], level: float = 0.95) -> Bounds:
    """Return the interval of the AUROC, or of the mean of the AUROCs of several OOD sets.

    The wider of two on each side. DeLong et al. 1988 on the logit scale takes the variance from the
    scores; means over sets account for the ID images that the sets share. It is too narrow where
    few scores are on the wrong side, and has no length where none is. Newcombe 2006 (method 5)
    takes the variance of a smooth model and is right there.

    Args:
        id_scores: `(N,)` finite floats, higher = more in-distribution.
        ood_scores: `(M,)` likewise, for each OOD set.
        level: confidence, in (0, 1).

    Returns:
        `(low, high)` in [0, 1], around the AUROC.

    Raises:
        UserError: scores as in `auroc`; no OOD set; a level outside (0, 1).
    """
    check_level(level)
    inliers, outliers = values_of(id_scores, ood_scores)
    placed = placements(inliers, outliers)
    z = float(ndtri((1 + level) / 2))
    low, high = _delong(placed.mean, placed.variance(), z)
    # As many outliers as would leave the mean over independent sets as uncertain.
    count = len(outliers) ** 2 / sum(1 / len(values) for values in outliers)
    smooth_low, smooth_high = _newcombe(placed.mean, len(inliers), count, z)
    return min(low, smooth_low), max(high, smooth_high)


@typed
def fpr_interval(
    id_scores: Tensor, ood_scores: Sequence[Tensor], tpr: float = 0.95, level: float = 0.95
) -> Bounds:
    """Return the interval of `fpr_at_tpr`, or of its mean over several OOD sets.

    The threshold is uncertain as a quantile of the ID scores is (order statistics, exact), and the
    share accepted there as a rate is (exact). The two distances from the rate are added in squares
    (MOVER; Zou and Donner 2008). With few ID images no threshold is known to reach the TPR, and the
    interval ends at 1.

    Args:
        id_scores: `(N,)` finite floats, higher = more in-distribution.
        ood_scores: `(M,)` likewise, for each OOD set.
        tpr: share of ID that the threshold accepts, in (0, 1).
        level: confidence, in (0, 1).

    Raises:
        UserError: scores as in `auroc`; no OOD set; a share outside (0, 1).
    """
    check_level(level)
    if not 0 < tpr < 1:
        raise UserError(f"tpr: {tpr}; accepted: a share in (0, 1)")
    inliers, outliers = values_of(id_scores, ood_scores)
    inliers.sort()
    number = len(inliers)
    threshold = inliers[number - least_count(tpr, number)]
    lenient, strict = _quantile_bounds(inliers, 1 - tpr, level)
    counts = [int((values >= threshold).sum()) for values in outliers]
    totals = [len(values) for values in outliers]
    rate = float(np.mean([(values >= threshold).mean() for values in outliers]))
    most = float(np.mean([(values >= lenient).mean() for values in outliers]))
    fewest = float(np.mean([(values > strict).mean() for values in outliers]))
    low, high = mean_rate_interval(counts, totals, level)
    below = math.hypot(rate - fewest, rate - low)
    above = math.hypot(most - rate, high - rate)
    return max(0.0, rate - below), min(1.0, rate + above)


def _quantile_bounds(ascending: Values, share: float, level: float) -> Bounds:
    """Return two scores between which a quantile is with the confidence; infinite without one.

    The quantile is below the k-th smallest of N scores but with P(Bin(N, share) < k), and above it
    but with P(Bin(N, share) >= k).
    """
    tail = (1 - level) / 2
    number = len(ascending)
    below = int(binom.ppf(tail, number, share))
    above = int(binom.ppf(1 - tail, number, share)) + 1
    lenient = float(ascending[below - 1]) if below >= 1 else -math.inf
    strict = float(ascending[above - 1]) if above <= number else math.inf
    return lenient, strict


class Placements:
    """Where each image stands among the other side's, and what follows for the mean AUROC.

    Args:
        of_inliers: `(N,)` shares of outliers below each ID score, ties half, averaged over sets.
        of_outliers: `(M,)` shares of ID scores above each OOD score, for each set.
    """

    def __init__(self, of_inliers: Values, of_outliers: Sequence[Values]) -> None:
        self.of_inliers = of_inliers
        self.of_outliers = of_outliers
        self.mean = float(of_inliers.mean())

    def __sub__(self, other: Placements) -> Placements:
        """Return the differences for the same images; their mean is that of the AUROCs."""
        pairs = zip(self.of_outliers, other.of_outliers, strict=True)
        return Placements(
            self.of_inliers - other.of_inliers, [ours - theirs for ours, theirs in pairs]
        )

    def variance(self) -> float:
        """Return the variance of the mean: DeLong et al. 1988, Eq. 4."""
        total = _variance_of_mean(self.of_inliers)
        for values in self.of_outliers:
            total += _variance_of_mean(values) / len(self.of_outliers) ** 2
        return total


def placements(inliers: Values, outliers: Sequence[Values]) -> Placements:
    """Return where each score stands among the other side's.

    Args:
        inliers: `(N,)`.
        outliers: `(M,)` for each set.
    """
    of_inliers = np.zeros(len(inliers))
    of_outliers = []
    for values in outliers:
        of_inliers += _shares_below(inliers, values) / len(outliers)
        of_outliers.append(1 - _shares_below(values, inliers))
    return Placements(of_inliers, of_outliers)


def _shares_below(scores: Values, others: Values) -> Values:
    """Return for each score the share of the others below it, ties counted half."""
    others = np.sort(others)
    below = np.searchsorted(others, scores, "left")
    not_above = np.searchsorted(others, scores, "right")
    shares: Values = (below + not_above) / (2 * len(others))
    return shares


def _variance_of_mean(values: Values) -> float:
    # One image says nothing of how images differ.
    return 0.25 if len(values) == 1 else float(values.var(ddof=1)) / len(values)


def _delong(mean: float, variance: float, z: float) -> Bounds:
    if not 0 < mean < 1:
        return mean, mean
    center = logit(mean)
    width = z * math.sqrt(variance) / (mean * (1 - mean))
    return float(expit(center - width)), float(expit(center + width))


def _newcombe(mean: float, positives: int, negatives: float, z: float) -> Bounds:
    """Return the AUROCs whose own standard error just reaches the one seen."""
    weight = (positives + negatives) / 2 - 1

    def excess(auroc: float) -> float:
        spread = 1 + weight * ((1 - auroc) / (2 - auroc) + auroc / (1 + auroc))
        return (mean - auroc) ** 2 - z**2 * auroc * (1 - auroc) * spread / (positives * negatives)

    return _root(excess, mean, 0.0), _root(excess, mean, 1.0)


def _root(excess: Callable[[float], float], mean: float, end: float) -> float:
    """Return where the excess changes its sign between the value seen and an end of the range."""
    if mean == end:
        return end
    start = min(max(mean, 1e-12), 1 - 1e-12)  # at 0 and 1 themselves it has another root
    if excess(start) >= 0:
        return mean
    return float(brentq(excess, start, end))


def values_of(id_scores: Tensor, ood_scores: Sequence[Tensor]) -> tuple[Values, list[Values]]:
    """Return checked scores in float64, the ID's `(N,)` and each OOD set's `(M,)`."""
    if not len(ood_scores):
        raise UserError("ood_scores: expected the scores of one or more sets, got none")
    inliers = checked("id_scores", id_scores).double().cpu().numpy()
    outliers = []
    for scores in ood_scores:
        outliers.append(checked("ood_scores", scores).double().cpu().numpy())
    return inliers, outliers


def check_level(level: float) -> None:
    """Raise `UserError` for a confidence outside (0, 1)."""
    if not 0 < level < 1:
        raise UserError(f"level: {level}; accepted: a share in (0, 1)")
