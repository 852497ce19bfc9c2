"""Bootstrap intervals: how far the size of the test sets leaves a metric uncertain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.metrics.counts import Counts, count

_CHUNK = 2**16  # scores resampled at a time: little enough for the cache, and for any memory


@typed
def bootstrap_intervals(
    id_scores: Tensor,
    ood_scores: Tensor,
    generator: torch.Generator,
    samples: int = 1000,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of `auroc` and `fpr95` over resamples of the scores.

    Source: Efron and Tibshirani 1993, chapter 13; stratified, so that every resample has N ID and M
    OOD scores. The scores are sorted once: a resample is a number of copies of each score, and
    gives counts over the same thresholds.

    Args:
        id_scores: (N,) finite floats, higher = more in-distribution.
        ood_scores: (M,) likewise.
        generator: makes the draws, on its own device; it is advanced.
        samples: how many resamples.
        level: the share of resamples inside the interval, in (0, 1).

    Returns:
        `{"auroc": (low, high), "fpr95": (low, high)}`.

    Raises:
        UserError: scores as in `auroc`; `samples` below 1; `level` outside (0, 1).
    """
    if samples < 1:
        raise UserError(f"samples: {samples}; accepted: an integer >= 1")
    if not 0 < level < 1:
        raise UserError(f"level: {level}; accepted: a share in (0, 1)")
    counts = count(id_scores, ood_scores)
    positives = counts.positives.to(generator.device)
    negatives = counts.negatives.to(generator.device)
    rows = max(1, _CHUNK // int(positives[-1] + negatives[-1]))
    # Allocated at once: results that are allocated between temporary tensors fragment the memory.
    values = positives.new_empty((2, samples), dtype=torch.float64)
    for start in range(0, samples, rows):
        copies = min(rows, samples - start)
        # The positives are drawn first: the order is part of the intervals' reproducibility.
        drawn_positives = _resample(positives, copies, generator)
        drawn_negatives = _resample(negatives, copies, generator)
        resampled = Counts(drawn_positives, drawn_negatives)
        rates = torch.stack([resampled.auroc(), resampled.fpr_at_tpr(0.95)])  # (2, copies)
        values[:, start : start + copies] = rates
    tails = values.new_tensor([(1 - level) / 2, (1 + level) / 2])
    (auroc_low, auroc_high), (fpr_low, fpr_high) = values.quantile(tails, dim=1).T.tolist()
    return {"auroc": (auroc_low, auroc_high), "fpr95": (fpr_low, fpr_high)}


def _resample(accepted: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """Draw resamples of a class with counts `(T + 1,)`; return theirs, `(copies, T + 1)`."""
    total = int(accepted[-1])
    drawn = torch.randint(total, (copies, total), generator=generator, device=generator.device)
    # How often each sorted score was drawn, (copies, total)
    ones = drawn.new_ones(()).expand_as(drawn)
    times = torch.zeros_like(drawn).scatter_add_(1, drawn, ones)
    return F.pad(times.cumsum(1), (1, 0)).index_select(1, accepted)
