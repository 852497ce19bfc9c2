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
    """How many scores of each class reach each of T + 1 thresholds, from none to all.

    The first threshold is the strictest. Leading dimensions are resamples of the same size. All
    methods are exact up to one final float64 division (average precision: one for each threshold)
    and return float64 `(...,)`.
    """

    positives: Tensor  # (..., T + 1) int64, rising from 0 to the number of positives
    negatives: Tensor  # (..., T + 1) likewise

    @property
    def totals(self) -> tuple[int, int]:
        """The number of positives and of negatives."""
        return int(self.positives.flatten()[-1]), int(self.negatives.flatten()[-1])

    def exchanged(self) -> Counts:
        """Return the counts with the classes exchanged and the scores negated.

        An image is now a positive call where it was rejected before.
        """
        positives, negatives = self.totals
        rejected_negatives = negatives - self.negatives.flip(-1)
        rejected_positives = positives - self.positives.flip(-1)
        return Counts(rejected_negatives, rejected_positives)

    def auroc(self) -> Tensor:
        """Return the share of pairs in which the positive wins, ties counted half."""
        positives, negatives = self.totals
        # A negative loses to all positives above it and to half of those tied with it; doubled,
        # these are integers.
        above_and_tied = self.positives[..., 1:] + self.positives[..., :-1]
        doubled_wins = (self.negatives.diff(dim=-1) * above_and_tied).sum(-1)
        return doubled_wins.double() / (2 * positives * negatives)

    def average_precision(self) -> Tensor:
        """Return the sum over thresholds of precision times gained recall."""
        # The strictest threshold accepts nothing and has no precision.
        accepted = self.positives[..., 1:].double()
        precision = accepted / (accepted + self.negatives[..., 1:])
        return (self.positives.diff(dim=-1) * precision).sum(-1) / self.totals[0]

    def fpr_at_tpr(self, tpr: float) -> Tensor:
        """Return the share of negatives accepted where a share `tpr` of positives first is."""
        positives, negatives = self.totals
        strictest = (self.positives < least_count(tpr, positives)).sum(-1, keepdim=True)
        return self.negatives.gather(-1, strictest).squeeze(-1).double() / negatives

    def detection_error(self) -> Tensor:
        """Return the minimum over thresholds of (FNR + FPR) / 2."""
        positives, negatives = self.totals
        # TPR - FPR, times the number of pairs
        gain = self.positives * negatives - self.negatives * positives
        return (positives * negatives - gain.amax(-1)).double() / (2 * positives * negatives)


def count(id_scores: Tensor, ood_scores: Tensor) -> Counts:
    """Check `(N,)` and `(M,)` scores and return the counts at all distinct ones, ID positive."""
    inliers = checked("id_scores", id_scores)
    outliers = checked("ood_scores", ood_scores)
    keys, order = torch.sort(_descending_keys(torch.cat([inliers, outliers])))  # (N + M,)
    last = order.new_tensor([len(order) - 1])
    # (T,) where each run of equal scores ends
    ends = torch.cat([(keys[1:] != keys[:-1]).nonzero().squeeze(1), last])
    positives = (order < len(inliers)).cumsum(0)[ends]
    return Counts(F.pad(positives, (1, 0)), F.pad(ends + 1 - positives, (1, 0)))


def _descending_keys(scores: Tensor) -> Tensor:
    """Map floats to integers in reverse order; torch sorts integers several times faster."""
    integer = torch.int64 if scores.dtype == torch.float64 else torch.int32
    bits = scores.view(integer)  # a sign and a magnitude: -0.0 and 0.0 both become 0
    return torch.where(bits < 0, bits - torch.iinfo(integer).min, -bits)


def checked(field: str, scores: Tensor) -> Tensor:
    """Return finite `(N,)` scores, N > 0, on the CPU.

    They are in float32 or float64, which represent every smaller type exactly.

    Raises:
        UserError: anything else; the message names the field.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        given = type(scores).__name__
        if isinstance(scores, Tensor):
            given = str(scores.dtype)
        raise UserError(f"{field}: {given}; accepted: a tensor of floats")
    if scores.dim() != 1 or scores.numel() == 0:
        raise UserError(
            f"{field}: shape {tuple(scores.shape)}; accepted: (N,) with at least one score"
        )
    exact = scores.detach().cpu().to(torch.promote_types(scores.dtype, torch.float32))
    if not exact.isfinite().all():
        index = int((~exact.isfinite()).nonzero()[0])
        raise UserError(f"{field}: {float(exact[index])} at index {index}; accepted: finite scores")
    return exact


def least_count(tpr: float, total: int) -> int:
    """Return the smallest count that is at least a share `tpr` of a total."""
    if not 0 < tpr <= 1:
        raise UserError(f"tpr: {tpr}; accepted: a share in (0, 1]")
    # As the decimal fraction that was written, so that 19 of 20 are 0.95.
    return math.ceil(Fraction(str(tpr)) * total)
