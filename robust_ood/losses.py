"""Per-image losses of logits. Each takes `(N, K)` logits and returns `(N,)` values in float32 or
wider.

Nothing is reduced here: an attack needs to choose image by image, and training takes the mean
itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.errors import UserError


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32: half-precision softmaxes saturate long before float32
    ones.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]`, `(N,)` >= 0, for integer labels `(N,)` in 0..K-1."""
    return F.cross_entropy(wide(logits), labels, reduction="none")


def cross_entropy_to_uniform(logits: Tensor) -> Tensor:
    """Return the cross-entropy from the uniform distribution to the softmax, `(N,)` >= log K.

    Source: the outlier term of OE and of ALOE Eq. 4, `L_CE(F(x), U_K)`. Equal to `logsumexp(z) -
    mean(z)`; it is KL(uniform || softmax) + log K, and smallest where all logits are equal.
    """
    logits = wide(logits)
    return logits.logsumexp(1) - logits.mean(1)


def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy of the softmax in nats, `(N,)` in 0..log K."""
    log_probabilities = F.log_softmax(wide(logits), dim=1)
    return -(log_probabilities.exp() * log_probabilities).sum(1)


def log_odds(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return `log p / (1 - p)` of the given class, `(N,)`; of the predicted one where none is
    given.

    Increasing in p, and free of its saturation: p in float32 is exactly 1 beyond a margin of about
    17, where its gradient is lost, while the log-odds keep growing with the margin.
    """
    logits = wide(logits)
    labels = logits.argmax(1) if labels is None else labels
    own = logits.gather(1, labels[:, None])  # (N, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.logsumexp(1)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of the labelled class minus the largest other one, `(N,)`; negative means
    misclassified.
    """
    logits = wide(logits)
    own = logits.gather(1, labels[:, None])  # (N, 1)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.amax(1)


def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the DLR loss: the margin divided by the gap between the largest and the third
    largest logit, `(N,)`.

    Source: Croce and Hein 2020, Eq. 6, with the sign of a margin (an attack on the classifier
    minimises it).
    Raises: `UserError` below 3 classes, where the third logit does not exist.
    """
    logits = wide(logits)
    if logits.shape[1] < 3:
        raise UserError(
            f"loss: DLR needs at least 3 classes, the network has {logits.shape[1]}; use 'margin' instead"
        )
    top = logits.topk(3, dim=1).values  # (N, 3)
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)
