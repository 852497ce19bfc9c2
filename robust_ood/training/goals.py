"""Functions of logits that methods descend: the loss of labels, and of two batches run as one."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood import losses
from robust_ood.perturb import Objective


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy `(N,)` of classes `(N,)`, or of mixed images' shares `(N, K)`."""
    if labels.ndim == 1:
        return losses.cross_entropy(logits, labels)
    return -(labels * losses.finite_logs(logits.float().log_softmax(1))).sum(1)


def joint(first: Objective, second: Objective, size: int) -> Objective:
    """Return the objective of joint logits: `first` for the first `size` images, then `second`."""

    def both(logits: Tensor) -> Tensor:
        return torch.cat([first(logits[:size]), second(logits[size:])])  # (N,)

    return both
