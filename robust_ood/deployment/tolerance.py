"""Thresholds with a finite-sample promise: how much of new in-distribution images is accepted."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import betainc
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError


@dataclass(frozen=True)
class Threshold:
    """A threshold, and what it promises.

    Args:
        value: an image is accepted where its score is at least this.
        accept: the share of new in-distribution images that is accepted at least, in (0, 1).
        confidence: the probability, over the calibration images, that this holds, in (0, 1).
        images: how many calibration images there were.
        rank: which of their sorted scores, from 1, is the threshold.
    """

    value: float
    accept: float
    confidence: float
    images: int
    rank: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    def in_words(self) -> str:
        """Return the promise as a sentence."""
        return (
            f"with {100 * self.confidence:g} % confidence at least {100 * self.accept:g} % of new "
            f"in-distribution images are accepted ({self.images} calibration images)"
        )


@typed
def images_needed(accept: float, confidence: float = 0.95) -> int:
    """Return from how many calibration images on a promise can be kept.

    The lowest of n scores is above the (1 - accept)-quantile with the probability `accept^n`.

    Args:
        accept: share of new in-distribution images, in (0, 1).
        confidence: in (0, 1).

    Raises: `UserError` for a number outside (0, 1).
    """
    _check(accept, confidence)
    needed = max(1, math.ceil(math.log1p(-confidence) / math.log(accept)))
    # The logarithms round: the definition decides between neighbours.
    while needed > 1 and 1 - accept ** (needed - 1) >= confidence:
        needed -= 1
    while 1 - accept**needed < confidence:
        needed += 1
    return needed


@typed
def conformal_threshold(scores: Tensor, accept: float, confidence: float = 0.95) -> Threshold:
    """Return the highest threshold that keeps the promise.

    The k-th lowest of n scores is the threshold. The share of new images above it follows, where
    the scores are continuous, the distribution Beta(n + 1 - k, k), whatever theirs is; so it is at
    least `accept` with the probability P(Bin(n, 1 - accept) >= k), and the largest k with which
    that is at least `confidence` is taken. Where scores tie, more images are accepted.

    Source: Wilks 1941 (tolerance limits); Vovk 2012, Prop. 2a (split conformal prediction,
    conditional on the calibration images).

    Args:
        scores: of calibration images `(N,)`, higher = in-distribution. The network and the detector
            must not have learned from these images.
        accept: share of new in-distribution images, in (0, 1).
        confidence: in (0, 1).

    Raises: `UserError` for scores that are not finite, or too few of them.
    """
    needed = images_needed(accept, confidence)
    values = np.sort(scores.detach().cpu().double().numpy().reshape(-1))
    count = len(values)
    if not np.isfinite(values).all():
        raise UserError("scores: expected finite numbers, got NaN or infinity")
    if count < needed:
        raise UserError(
            f"accept: {accept:g} with confidence {confidence:g} needs at least {needed} "
            f"calibration images, got {count} scores"
        )
    ranks = np.arange(1, count + 1, dtype=np.float64)
    kept = betainc(ranks, count - ranks + 1, 1 - accept)  # falls with the rank
    rank = max(1, int((kept >= confidence).sum()))
    return Threshold(float(values[rank - 1]), accept, confidence, count, rank)


def calibration_ranks(calibration: Tensor, scores: Tensor) -> Tensor:
    """Return the share of the calibration images whose score is lower, `(N,)` in [0, 1].

    Args:
        calibration: their sorted scores `(M,)`.
        scores: `(N,)`.
    """
    places = torch.searchsorted(calibration, scores.to(calibration).contiguous())
    return places.double() / max(len(calibration), 1)


def _check(accept: float, confidence: float) -> None:
    for field, value in (("accept", accept), ("confidence", confidence)):
        if not 0 < value < 1:
            raise UserError(f"{field}: expected a share in (0, 1), got {value:g}")
        if value > 1 - 1e-9:
            raise UserError(f"{field}: {value!r} is too near to 1; expected at most 1 - 1e-9")
