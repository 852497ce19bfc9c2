"""Training methods compared over seeds and over test images, both of which are a draw of many."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.metrics.confidence import check_level, values_of
from robust_ood.metrics.paired import Difference

Values = NDArray[np.float64]
Copies = NDArray[np.int64]

_AT_ONCE = 2**21  # numbers of a block of resamples: little enough for any memory


@typed
def paired_bootstrap(
    id_scores: Sequence[Sequence[Tensor]],
    ood_scores: Sequence[Sequence[Sequence[Tensor]]],
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Compare two training methods by the mean AUROC of their networks, scored on the same images.

    Two draws make the difference uncertain. That of the test images is resampled: each resample has
    the same images for all networks of both methods (Efron and Tibshirani 1993). That of the
    training seeds is the variance of the differences between networks of the same seed, over their
    number. Both variances are added, and the test is Student's, whose degrees of freedom are those
    of the seeds where these make the variance (Satterthwaite 1946). Resampling five seeds would
    claim far more than five seeds can show.

    Args:
        id_scores: for each of the two methods, and each of its networks in the order of their
            seeds, one tensor `(N,)`, the scores of the same ID images in one order. Seeds are
            paired where both methods have as many networks, else independent. One network says
            nothing of its seeds: then the difference is that of the networks.
        ood_scores: likewise, of each network one tensor `(M,)` for each OOD set.
        samples: resamples of the images, >= 1.
        level: confidence of the interval, in (0, 1).
        seed: of the resamples.

    Returns:
        The first minus the second mean AUROC, its interval, and the two-sided p-value.

    Raises:
        UserError: no network; numbers of images that differ between networks; scores as in `auroc`.
    """
    check_level(level)
    if samples < 1:
        raise UserError(f"samples: {samples}; accepted: an integer >= 1")
    for field, both in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if len(both) != 2 or not all(map(len, both)):
            raise UserError(f"{field}: expected those of one or more networks of two methods")
    networks = []
    for of_inliers, of_outliers in zip(id_scores, ood_scores, strict=True):
        if len(of_inliers) != len(of_outliers):
            raise UserError(
                f"ood_scores: of {len(of_outliers)} networks, where id_scores has "
                f"{len(of_inliers)}; expected as many"
            )
        networks += list(map(values_of, of_inliers, of_outliers))
    _require_same_images(networks)
    first = len(id_scores[0])
    aurocs = _resampled_aurocs(networks, samples, seed)  # (1 + samples, networks)
    change = aurocs[:, :first].mean(1) - aurocs[:, first:].mean(1)
    difference = float(change[0])
    of_images = float(change[1:].var(ddof=min(1, samples - 1)))
    of_seeds, freedom = _variance_of_seeds(aurocs[0, :first], aurocs[0, first:])
    variance = of_images + of_seeds
    if variance == 0:
        return Difference(difference, difference, difference, float(difference == 0))
    if of_seeds > 0:
        freedom *= (variance / of_seeds) ** 2
    else:
        freedom = math.inf
    deviation = math.sqrt(variance)
    width = float(student.ppf((1 + level) / 2, freedom)) * deviation
    p_value = 2 * float(student.sf(abs(difference) / deviation, freedom))
    return Difference(
        difference, max(-1.0, difference - width), min(1.0, difference + width), p_value
    )


def _variance_of_seeds(first: Values, second: Values) -> tuple[float, float]:
    """Return the variance of the difference of means over seeds, and its degrees of freedom."""
    if len(first) == len(second):
        if len(first) == 1:
            return 0.0, math.inf
        change = first - second
        return float(change.var(ddof=1)) / len(change), len(change) - 1.0
    parts = [(values.var(ddof=1) / len(values), len(values) - 1.0)
             for values in (first, second) if len(values) > 1]  # fmt: skip
    variance = float(sum(part for part, _ in parts))
    if variance == 0:
        return 0.0, math.inf
    return variance, variance**2 / float(sum(part**2 / freedom for part, freedom in parts))


def _require_same_images(networks: Sequence[tuple[Values, list[Values]]]) -> None:
    sizes = []
    for inliers, outliers in networks:
        sizes.append([len(inliers), *map(len, outliers)])
    for other in sizes[1:]:
        if other != sizes[0]:
            raise UserError(
                f"id_scores, ood_scores: of {other} images, where {sizes[0]} are expected; a "
                "paired test needs the same images"
            )


def _resampled_aurocs(
    networks: Sequence[tuple[Values, list[Values]]], samples: int, seed: int
) -> Values:
    """Return mean AUROCs over the OOD sets: all images once, then each resample.

    All networks `(1 + samples, networks)` have the same images in a resample.
    """
    inliers, outliers = networks[0]
    draws = torch.Generator().manual_seed(seed)
    copies_of_inliers = _copies(draws, samples, len(inliers))
    total = np.zeros((1 + samples, len(networks)))
    for place in range(len(outliers)):
        copies_of_outliers = _copies(draws, samples, len(outliers[place]))
        for column, (own_inliers, own_outliers) in enumerate(networks):
            total[:, column] += _aurocs(
                own_inliers, own_outliers[place], copies_of_inliers, copies_of_outliers
            )
    return total / len(outliers)


def _copies(draws: torch.Generator, samples: int, images: int) -> Copies:
    """Return how often each image is in each resample `(1 + samples, images)`; first, once."""
    copies = torch.ones(1 + samples, images, dtype=torch.int64)
    for row in range(1, 1 + samples):
        drawn = torch.randint(images, (images,), generator=draws)
        copies[row] = torch.bincount(drawn, minlength=images)
    return copies.numpy()


def _aurocs(
    inliers: Values, outliers: Values, copies_of_inliers: Copies, copies_of_outliers: Copies
) -> Values:
    """Return the AUROC `(S,)` of each resample, ties counted half."""
    order = outliers.argsort()
    lower = np.searchsorted(outliers[order], inliers, side="left")  # (N,)
    upper = np.searchsorted(outliers[order], inliers, side="right")
    aurocs = np.empty(len(copies_of_inliers))
    rows = max(1, _AT_ONCE // (len(inliers) + len(outliers)))
    for start in range(0, len(aurocs), rows):
        of_inliers = copies_of_inliers[start : start + rows]
        sorted_copies = copies_of_outliers[start : start + rows, order]
        below = np.pad(sorted_copies.cumsum(1), ((0, 0), (1, 0)))  # (rows, M + 1)
        beaten = below[:, lower] + below[:, upper]  # (rows, N), ties once, others twice
        aurocs[start : start + rows] = (of_inliers * beaten).sum(1)
    return aurocs / (2 * len(inliers) * len(outliers))
