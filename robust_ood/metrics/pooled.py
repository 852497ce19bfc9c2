"""TorchMetrics classes over the pure functions: they pool scores over batches and processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from robust_ood.errors import UserError
from robust_ood.metrics.rates import auroc, fpr95, ood_metrics


class _PooledScores(Metric):
    """All scores seen since the last reset. A process may have seen only one kind of image, or
    none.

    Args:
        options: of `torchmetrics.Metric`, for instance `sync_on_compute` or `process_group`.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    id_scores: list[Tensor]
    ood_scores: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # The type of the placeholder that a process without scores sends to the others.
        self.set_dtype(torch.float64)
        self.add_state("id_scores", default=[], dist_reduce_fx="cat")
        self.add_state("ood_scores", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, in_distribution: bool | Tensor) -> None:
        """Add the scores of a batch.

        Args:
            scores: (N,) floats, higher = more in-distribution.
            in_distribution: whether the images are ID: one value for all, or a mask `(N,)`.

        Raises:
            UserError: scores that are not floats `(N,)`; a mask that is not boolean or has another
                shape.
        """
        if scores.dim() != 1 or not scores.is_floating_point():
            raise UserError(f"scores: {scores.dtype} {tuple(scores.shape)}; accepted: floats (N,)")
        inside = torch.as_tensor(in_distribution, device=scores.device)
        if inside.dtype != torch.bool or inside.shape not in (torch.Size([]), scores.shape):
            given = f"{inside.dtype} {tuple(inside.shape)}"
            raise UserError(
                f"in_distribution: {given}; accepted: a bool, or booleans {tuple(scores.shape)}"
            )
        scores = scores.detach().to(_widest(scores.device))
        inside = inside.expand_as(scores)
        self.id_scores.append(scores[inside])
        self.ood_scores.append(scores[~inside])

    def _pools(self) -> tuple[Tensor, Tensor]:
        return _cat(self.id_scores), _cat(self.ood_scores)

    def _result(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=_widest(self.device), device=self.device)


def _cat(pool: list[Tensor]) -> Tensor:
    """Return the pool as one tensor; while synchronised, it already is one."""
    if not len(pool):  # no update yet
        return torch.empty(0)
    return dim_zero_cat(pool)


def _widest(device: torch.device) -> torch.dtype:
    """Return float64, which represents any score exactly; float32 on Apple GPUs, their widest."""
    return torch.float32 if device.type == "mps" else torch.float64


class OODMetrics(_PooledScores):
    """`ood_metrics` of all scores seen: `update(scores, in_distribution)`, then `compute()`.

    `compute()` returns a dict of scalars and raises `UserError` while one kind of image is missing
    in all processes together. So add ID and OOD batches with `update`; calling the metric would
    evaluate each batch on its own.
    """

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all processes.

        Scalars `auroc, aupr_in, aupr_out, fpr95, fpr95_ood_positive, detection_error`.
        """
        return {name: self._result(value) for name, value in ood_metrics(*self._pools()).items()}


class AUROC(_PooledScores):
    """`auroc` of all scores seen, a scalar to log or monitor; used as `OODMetrics`."""

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return `auroc` over all processes."""
        return self._result(auroc(*self._pools()))


class FPR95(_PooledScores):
    """`fpr95` (ID positive) of all scores seen, a scalar to log or monitor; as `OODMetrics`."""

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return `fpr95` over all processes."""
        return self._result(fpr95(*self._pools()))
