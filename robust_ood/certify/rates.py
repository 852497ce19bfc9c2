"""Certified rates: what bounds of scores leave of AUROC, FPR95 and detection error.

No attack within the radius makes a rate worse, where the bounds hold. Ties count as errors, because
bounds may be attained. Scores are higher where an image is more in-distribution; unlike those of
`metrics` they may be infinite.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.certify.bounds import ScoreBounds
from robust_ood.errors import UserError, unknown_name

Attacked = Literal["both", "inliers", "outliers", "none"]
"""Which images the attacker may move."""


@typed
def certified_auroc(id_lower: Tensor, ood_upper: Tensor) -> float:
    """Return the share of pairs whose inlier's lower bound exceeds the outlier's upper bound.

    Args:
        id_lower: lower bounds of the inliers' scores `(N,)`, or scores that are not attacked.
        ood_upper: upper bounds of the outliers' scores `(M,)`, likewise.

    Returns:
        A lower bound of the AUROC under attack, in [0, 1].

    Raises:
        UserError: bounds that are not one-dimensional, empty or NaN (so for all functions here).
    """
    inliers, outliers = _checked(id_lower, ood_upper)
    beaten = torch.searchsorted(outliers.sort().values, inliers)  # outliers strictly below, (N,)
    return int(beaten.sum()) / (len(inliers) * len(outliers))


@typed
def certified_fpr95(id_lower: Tensor, ood_upper: Tensor) -> float:
    """Return an upper bound of the FPR at 95 % TPR under attack, in [0, 1].

    The threshold is the strictest that at least 95 % of the inliers' lower bounds `(N,)` reach;
    outliers whose upper bound, `(M,)`, reaches it are errors.
    """
    inliers, outliers = _checked(id_lower, ood_upper)
    # The rejected are fewer than 5 %: in whole numbers, because 0.05 * 20 may round down.
    rejected = (5 * len(inliers)) // 100
    threshold = inliers.sort().values[rejected]
    return int((outliers >= threshold).sum()) / len(outliers)


@typed
def certified_detection_error(id_lower: Tensor, ood_upper: Tensor) -> float:
    """Return an upper bound of the detection error under attack, in [0, 0.5].

    It is the smallest mean of the two error rates, over the thresholds that accept inliers by lower
    bounds `(N,)` and outliers by upper bounds `(M,)`.
    """
    inliers, outliers = _checked(id_lower, ood_upper)
    inliers = inliers.sort().values
    outliers = outliers.sort().values
    missed = torch.arange(len(inliers))  # below each inlier's bound as the threshold, at most
    accepted = len(outliers) - torch.searchsorted(outliers, inliers)  # at or above it
    errors = missed.double() / len(inliers) + accepted.double() / len(outliers)
    # Rejecting everything errs on all inliers alone.
    return min(float(errors.min()) / 2, 0.5)


@typed
def certified_rates(
    inliers: ScoreBounds, outliers: ScoreBounds, attacked: Attacked = "both"
) -> dict[str, float]:
    """Return certified `auroc`, `fpr95` and `detection_error` of a smoothed detector.

    The images that are not attacked count by the bounds of their own smoothed score, so that the
    rates hold with the bounds' confidence and not by an estimate.

    Args:
        inliers: bounds of the in-distribution images `(N,)`, at one radius (`bounds.at(radius)`).
        outliers: those of the others `(M,)`.
        attacked: which of them the attacker may move: "both", "inliers", "outliers" or "none".

    Raises:
        UserError: an unknown side; bounds of several radii, or of two smoothed detectors.
    """
    if attacked not in get_args(Attacked):
        raise unknown_name("attacked", attacked, get_args(Attacked))
    for side in (inliers, outliers):
        if isinstance(side.radius, tuple):
            raise UserError("inliers, outliers: expected bounds at one radius; use `.at(radius)`")
    for setting in ("radius", "sigma", "quantile"):
        values = getattr(inliers, setting), getattr(outliers, setting)
        if values[0] != values[1]:
            raise UserError(
                f"outliers: their bounds are of {setting} {values[1]:g}, the inliers' of "
                f"{values[0]:g}; expected the same smoothed detector and radius"
            )
    lower = inliers.lower
    if attacked in ("outliers", "none"):
        lower = inliers.clean_lower
    upper = outliers.upper
    if attacked in ("inliers", "none"):
        upper = outliers.clean_upper
    return {
        "auroc": certified_auroc(lower, upper),
        "fpr95": certified_fpr95(lower, upper),
        "detection_error": certified_detection_error(lower, upper),
    }


def _checked(id_lower: Tensor, ood_upper: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for field, bounds in (("id_lower", id_lower), ("ood_upper", ood_upper)):
        if bounds.dim() != 1 or not len(bounds) or not bounds.is_floating_point():
            raise UserError(
                f"{field}: expected floats (N,), N >= 1, got {bounds.dtype} of shape "
                f"{tuple(bounds.shape)}"
            )
        if bounds.isnan().any():
            raise UserError(f"{field}: a bound is NaN; expected numbers, or infinity")
        found.append(bounds.detach().cpu().double())
    return found[0], found[1]
