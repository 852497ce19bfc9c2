"""One sort of all scores, the counts it gives, and the formulas over these counts."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.errors import UserError


class Counts(NamedTuple):
    """How many scores of each class reach each of T + 1 thresholds, from the strictest (none) to
    the laxest (all).

    Leading dimensions are resamples of the same size. All methods are exact up to one final float64
    division (average
    precision: one for each threshold) and return float64 `(...,)`.
    """

    positives: Tensor  # (..., T + 1) int64, rising from 0 to the number of positives
    negatives: Tensor  # (..., T + 1) likewise

    @property
    def totals(self) -> tuple[int, int]:
        """The number of positives and of negatives."""
        return int(self.positives.flatten()[-1]), int(self.negatives.flatten()[-1])

    def exchanged(self) -> Counts:
        """Return the counts with the classes exchanged and the scores negated: what was not
        accepted is now found.
        """
        positives, negatives = self.totals
        return Counts(negatives - self.negatives.flip(-1), positives - self.positives.flip(-1))

    def auroc(self) -> Tensor:
        """Return the share of pairs in which the positive wins, ties counted half."""
        positives, negatives = self.totals
        # A negative loses to all positives above it and to half of those tied with it; doubled,
        # these are integers.
        above_and_tied = self.positives[..., 1:] + self.positives[..., :-1]
        return (self.negatives.diff(dim=-1) * above_and_tied).sum(-1).double() / (
            2 * positives * negatives
        )

    def average_precision(self) -> Tensor:
        """Return the sum over thresholds of precision times gained recall."""
        found = self.positives[
            ..., 1:
        ].double()  # the strictest threshold accepts nothing and has no precision
        precision = found / (found + self.negatives[..., 1:])
        return (self.positives.diff(dim=-1) * precision).sum(-1) / self.totals[0]

    def fpr_at_tpr(self, tpr: float) -> Tensor:
        """Return the share of negatives accepted at the strictest threshold that accepts a share
        `tpr` of positives.
        """
        positives, negatives = self.totals
        strictest = (self.positives < least_count(tpr, positives)).sum(-1, keepdim=True)
        return self.negatives.gather(-1, strictest).squeeze(-1).double() / negatives

    def detection_error(self) -> Tensor:
        """Return the minimum over thresholds of (FNR + FPR) / 2."""
        positives, negatives = self.totals
        gain = (
            self.positives * negatives - self.negatives * positives
        )  # TPR - FPR, times the number of pairs
        return (positives * negatives - gain.amax(-1)).double() / (2 * positives * negatives)


def count(id_scores: Tensor, ood_scores: Tensor) -> Counts:
    """Return the counts at all distinct scores, ID positive, after checking `(N,)` and `(M,)`
    scores.
    """
    inliers, outliers = checked("id_scores", id_scores), checked("ood_scores", ood_scores)
    keys, order = torch.sort(_descending_keys(torch.cat([inliers, outliers])))  # (N + M,)
    last = order.new_tensor([len(order) - 1])
    ends = torch.cat(
        [(keys[1:] != keys[:-1]).nonzero().squeeze(1), last]
    )  # (T,) where each run of equal scores ends
    positives = (order < len(inliers)).cumsum(0)[ends]
    return Counts(F.pad(positives, (1, 0)), F.pad(ends + 1 - positives, (1, 0)))


def _descending_keys(scores: Tensor) -> Tensor:
    """Map floats to integers in reverse order, equal to equal; torch sorts integers several times
    faster (radix).
    """
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    bits = scores.view(integer)  # a sign and a magnitude: -0.0 and 0.0 both become 0
    return torch.where(bits < 0, bits - torch.iinfo(integer).min, -bits)


def checked(field: str, scores: Tensor) -> Tensor:
    """Return finite `(N,)` scores, N > 0, on the CPU in float32 or float64, which hold every
    smaller float exactly.

    Raises: `UserError` that names the field if they are anything else.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        given = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"{field}: {given}; accepted: a tensor of floats")
    if scores.dim() != 1 or scores.numel() == 0:
        raise UserError(
            f"{field}: shape {tuple(scores.shape)}; accepted: (N,) with at least one score"
        )
    exact = scores.detach().cpu().to(torch.promote_types(scores.dtype, torch.float32))
    if not exact.isfinite().all():
        place = int((~exact.isfinite()).nonzero()[0])
        raise UserError(f"{field}: {float(exact[place])} at index {place}; accepted: finite scores")
    return exact


def least_count(tpr: float, total: int) -> int:
    """Return the smallest count that is at least a share `tpr` of a total; in decimals, so 19 of 20
    are 0.95.
    """
    if not 0 < tpr <= 1:
        raise UserError(f"tpr: {tpr}; accepted: a share in (0, 1]")
    return math.ceil(Fraction(str(tpr)) * total)
