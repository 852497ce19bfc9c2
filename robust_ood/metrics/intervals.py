"""Bootstrap intervals: how far the size of the test sets leaves a metric uncertain."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.errors import UserError
from robust_ood.metrics.counts import Counts, count

_CHUNK = 2**16  # scores resampled at a time: little enough for the cache, and for any memory


def bootstrap_intervals(
    id_scores: Tensor,
    ood_scores: Tensor,
    generator: torch.Generator,
    samples: int = 1000,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of `auroc` and `fpr95` over resamples of the scores.

    Source: Efron and Tibshirani 1993, chapter 13; stratified, so that every resample has N ID and M
    OOD scores. The
    scores are sorted once: a resample is a number of copies of each, and gives counts over the same
    thresholds.

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
    positives, negatives = (
        accepted.to(generator.device) for accepted in count(id_scores, ood_scores)
    )
    rows = max(1, _CHUNK // int(positives[-1] + negatives[-1]))
    # Made beforehand: kept results that are made between passing tensors would scatter these over
    # ever more memory.
    values = positives.new_empty((2, samples), dtype=torch.float64)
    for start in range(0, samples, rows):
        copies = min(rows, samples - start)
        resampled = Counts(
            _resample(positives, copies, generator), _resample(negatives, copies, generator)
        )
        values[:, start : start + copies] = torch.stack(
            [resampled.auroc(), resampled.fpr_at_tpr(0.95)]
        )
    tails = values.new_tensor([(1 - level) / 2, (1 + level) / 2])
    (auroc_low, auroc_high), (fpr_low, fpr_high) = values.quantile(tails, dim=1).T.tolist()
    return {"auroc": (auroc_low, auroc_high), "fpr95": (fpr_low, fpr_high)}


def _resample(accepted: Tensor, copies: int, generator: torch.Generator) -> Tensor:
    """Return `(copies, T + 1)` counts of resamples, drawn with replacement, of the class that has
    these `(T + 1,)`.
    """
    total = int(accepted[-1])
    drawn = torch.randint(total, (copies, total), generator=generator, device=generator.device)
    times = torch.zeros_like(drawn).scatter_add_(
        1, drawn, drawn.new_ones(()).expand_as(drawn)
    )  # of each sorted score
    return F.pad(times.cumsum(1), (1, 0)).index_select(1, accepted)
