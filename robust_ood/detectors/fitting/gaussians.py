"""Gaussians of features: the algebra that the Mahalanobis scores share."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robust_ood.errors import UserError

CONDITION = 1e6  # beyond it, distances in float32 lose their digits
Shrinkage = float | Literal["auto"]


def whitening(covariance: Tensor, shrinkage: Shrinkage = "auto") -> Tensor:
    """Return W `(D, D)` such that `x @ W` has unit covariance.

    Squared lengths of `x @ W` are squared Mahalanobis distances.

    Args:
        covariance: `(D, D)`, float64.
        shrinkage: s in [0, 1]: the covariance is replaced by `(1 - s) covariance + s mean variance
            identity`. "auto" is 0 where the condition number is at most 1e6, and otherwise the
            smallest s that makes it so, which features need that are constant or linear in each
            other.

    Raises:
        UserError: `shrinkage` outside [0, 1], features that do not vary at all, or a covariance
            that stays singular.
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    share = shrinkage
    if share == "auto":
        share = _needed_shrinkage(values)
    if isinstance(share, str) or not 0 <= share <= 1:
        raise UserError(f"shrinkage: expected 'auto' or a number in [0, 1], got {shrinkage!r}")
    # Shrinking towards the identity keeps the eigenvectors.
    values = (1 - share) * values + share * values.mean()
    if not values[0] > 0:
        raise UserError(
            f"shrinkage: with {shrinkage} the features' covariance is singular; use 'auto'"
        )
    matrix: Tensor = vectors / values.sqrt()
    return matrix


def _needed_shrinkage(values: Tensor) -> float:
    """Return the smallest shrinkage for a condition number of `CONDITION`.

    Args:
        values: eigenvalues `(D,)`, ascending.
    """
    low = float(values[0])
    high = float(values[-1])
    mean = float(values.mean())
    if not mean > 0:
        raise UserError(
            "loader: the features do not vary over the images; "
            "the network gives the same features for each"
        )
    floor = high / CONDITION
    if low >= floor:
        return 0.0
    # (1 - s) low + s mean = ((1 - s) high + s mean) / CONDITION, solved for s.
    missing = floor - low
    return missing / (missing + mean - mean / CONDITION)


def squared_lengths(vectors: Tensor) -> Tensor:
    """Return the squared Euclidean length of each row, `(N,)`."""
    return vectors.square().sum(1)


def nearest_center(points: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distance `(N,)` of whitened points to their nearest centre.

    The centre is chosen by one matrix product. The distance to it is then computed directly, which
    is more accurate, and differentiable where both coincide.

    Args:
        points: `(N, D)`.
        centers: `(K, D)`.
    """
    with torch.no_grad():
        # By itself, torch chooses by the number of points, which an exported graph leaves open.
        mode = "use_mm_for_euclid_dist_if_necessary"
        if torch.compiler.is_compiling():
            mode = "use_mm_for_euclid_dist"
        nearest = torch.cdist(points, centers, compute_mode=mode).argmin(1)
    return squared_lengths(points - centers[nearest])
