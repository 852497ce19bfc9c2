"""Bootstrap intervals: how far the size of the test sets leaves a metric uncertain."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood.errors import UserError
from robust_ood.metrics.counts import Counts, count

_CHUNK = 2**16  # scores resampled at a time: little enough for the cache, and for any memory


def bootstrap_intervals(
    id_scores: Tensor, ood_scores: Tensor, generator: torch.Generator, samples: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of `auroc` and `fpr95` over resamples of the scores.

    Source: Efron and Tibshirani 1993, chapter 13; stratified, so that every resample has N ID and M OOD scores. The
    scores are sorted once: a resample is a number of copies of each, and gives counts over the same thresholds.

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
    positives, negatives = (accepted.to(generator.device) for accepted in count(id_scores, ood_scores))
    rows = min(samples, max(1, _CHUNK // int(positives[-1] + negatives[-1])))
    draw_positives, draw_negatives = (_Resampler(counts, rows, generator) for counts in (positives, negatives))
    chunks = []
    for start in range(0, samples, rows):
        copies = min(rows, samples - start)
        resampled = Counts(draw_positives(copies), draw_negatives(copies))
        chunks.append(torch.stack([resampled.auroc(), resampled.fpr_at_tpr(0.95)]))
    values = torch.cat(chunks, dim=1)  # (2, samples)
    tails = values.new_tensor([(1 - level) / 2, (1 + level) / 2])
    (auroc_low, auroc_high), (fpr_low, fpr_high) = values.quantile(tails, dim=1).T.tolist()
    return {"auroc": (auroc_low, auroc_high), "fpr95": (fpr_low, fpr_high)}


class _Resampler:
    """Draws counts of resamples of the class that has these counts `(T + 1,)`, at most `rows` resamples at a time.

    All of them share its buffers: new ones of this size for each would spread over ever more memory.
    """

    def __init__(self, accepted: Tensor, rows: int, generator: torch.Generator) -> None:
        self.accepted, self.generator, self.total = accepted, generator, int(accepted[-1])
        self.drawn, self.times = accepted.new_empty((2, rows, self.total)).unbind()
        self.reached = accepted.new_zeros((rows, self.total + 1))  # copies of the best scores, none of them first
        self.counts = accepted.new_empty((rows, len(accepted)))

    def __call__(self, copies: int) -> Tensor:
        """Return `(copies, T + 1)` counts, drawn with replacement, which the next call overwrites."""
        drawn, times, reached = self.drawn[:copies], self.times[:copies], self.reached[:copies]
        torch.randint(self.total, drawn.shape, generator=self.generator, out=drawn)
        times.zero_().scatter_add_(1, drawn, drawn.new_ones(()).expand_as(drawn))  # of each sorted score
        torch.cumsum(times, 1, out=reached[:, 1:])
        return torch.index_select(reached, 1, self.accepted, out=self.counts[:copies])
