"""Tests whether two detectors, or networks, differ on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import erfc, ndtri
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.metrics.confidence import check_level, placements, values_of


class Difference(NamedTuple):
    """The first minus the second AUROC, its interval, and the two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


@typed
def delong_test(
    id_scores: Sequence[Tensor], ood_scores: Sequence[Sequence[Tensor]], level: float = 0.95
) -> Difference:
    """Compare the AUROCs of two detectors on the same images, or their means over OOD sets.

    Source: DeLong et al. 1988: the variance of the difference takes into account that an image
    that is hard for one detector is often hard for the other.

    Args:
        id_scores: two tensors `(N,)`, the detectors' scores of the same ID images in one order.
        ood_scores: for each of the two detectors, one tensor `(M,)` for each OOD set.
        level: confidence of the interval, in (0, 1).

    Returns:
        A `Difference`. Where every image favours the same detector by the same amount, the variance
        is 0 and the p-value is that of a sign test over the ID images.

    Raises:
        UserError: scores as in `auroc`; more or fewer than two; numbers of images that differ.
    """
    check_level(level)
    for field, both in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if len(both) != 2:
            raise UserError(f"{field}: expected those of two detectors, got {len(both)}")
    first, second = (
        values_of(inliers, outliers)
        for inliers, outliers in zip(id_scores, ood_scores, strict=True)
    )
    if len(first[0]) != len(second[0]):
        raise UserError(
            f"id_scores: {len(first[0])} and {len(second[0])}; expected the same images"
        )
    sizes = [[len(values) for values in outliers] for _, outliers in (first, second)]
    if sizes[0] != sizes[1]:
        raise UserError(f"ood_scores: {sizes[0]} and {sizes[1]} images; expected the same images")
    change = placements(*first) - placements(*second)
    deviation = math.sqrt(change.variance())
    width = float(ndtri((1 + level) / 2)) * deviation
    if deviation > 0:
        p_value = float(erfc(abs(change.mean) / deviation / math.sqrt(2)))
    else:
        p_value = 1.0 if change.mean == 0 else 2.0 ** (1 - len(first[0]))
    low = max(-1.0, change.mean - width)
    high = min(1.0, change.mean + width)
    return Difference(change.mean, low, high, p_value)


@typed
def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that the chance of any false finding among them stays the level.

    Source: Holm 1979.

    Args:
        p_values: in [0, 1].
    """
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        value = p_values[index]
        if not 0 <= value <= 1:
            raise UserError(f"p_values: {value}; accepted: numbers in [0, 1]")
        largest = max(largest, min(1.0, value * (len(p_values) - rank)))
        adjusted[index] = largest
    return [float(value) for value in adjusted]
