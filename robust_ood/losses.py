"""Per-image losses: `(N, K)` logits to `(N,)` values in float32 or wider.

Nothing is reduced here: an attack chooses image by image, and training takes the mean itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError


@typed
def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in at least float32: half-precision softmaxes saturate much earlier."""
    is_half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if is_half else tensor


@typed
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `-log softmax(logits)[label]`, `(N,)` >= 0, for integer labels `(N,)` in 0..K-1."""
    labels = _checked_labels(logits, labels)
    try:
        return F.cross_entropy(wide(logits), labels, reduction="none")
    except IndexError as error:  # only processors say so; a check would wait for other devices
        raise _no_such_class(logits) from error


@typed
def cross_entropy_to_uniform(logits: Tensor) -> Tensor:
    """Return the cross-entropy from the uniform distribution to the softmax, `(N,)` >= log K.

    Source: the outlier term of OE and of ALOE Eq. 4, `L_CE(F(x), U_K)`. Equal to `logsumexp(z) -
    mean(z)`; it is KL(uniform || softmax) + log K, and smallest where all logits are equal.
    """
    _check_logits(logits)
    logits = wide(logits)
    return logits.logsumexp(1) - logits.mean(1)


@typed
def entropy(logits: Tensor) -> Tensor:
    """Return the Shannon entropy of the softmax in nats, `(N,)` in 0..log K."""
    _check_logits(logits)
    log_probabilities = finite_logs(F.log_softmax(wide(logits), dim=1))
    return -(log_probabilities.exp() * log_probabilities).sum(1)


@typed
def finite_logs(log_probabilities: Tensor) -> Tensor:
    """Return log-probabilities of any shape with -inf as the lowest finite number.

    The logarithm of 0 times 0 is then 0, and its gradient too, as for a class that logits mask.
    """
    if not log_probabilities.is_floating_point():
        raise UserError(
            f"log_probabilities: expected floating-point numbers, got {_kind(log_probabilities)}"
        )
    lowest = torch.finfo(log_probabilities.dtype).min
    return log_probabilities.masked_fill(log_probabilities == -torch.inf, lowest)


@typed
def log_odds(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return `log p / (1 - p)` of each image's class, `(N,)`, by default the predicted class.

    Increasing in p, without its saturation: p in float32 is exactly 1 beyond a margin of about 17,
    where its gradient is lost, while the log-odds keep growing with the margin.
    """
    _check_logits(logits)
    logits = wide(logits)
    if labels is None:
        labels = logits.argmax(1)
    labelled, rest = _split(logits, labels)
    return labelled - rest.logsumexp(1)


@typed
def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the labelled logit minus the largest other, `(N,)`; negative where misclassified."""
    labelled, rest = _split(wide(logits), labels)
    return labelled - rest.amax(1)


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the labels, `(N,)`, and the rest, `(N, K)` with -inf at the labels."""
    _check_logits(logits)
    if logits.shape[1] < 2:
        raise UserError("net: gives one logit; expected one of each of 2 or more classes")
    columns = _checked_labels(logits, labels)[:, None]  # (N, 1)
    try:
        return logits.gather(1, columns)[:, 0], logits.scatter(1, columns, -torch.inf)
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise _no_such_class(logits) from error


def _check_logits(logits: Tensor) -> None:
    """Raise `UserError` for anything but floats `(N, K)` of one class or more."""
    if logits.dim() != 2 or not logits.shape[1] or not logits.is_floating_point():
        raise UserError(f"logits: expected floating-point numbers (N, K), got {_kind(logits)}")


def _checked_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return labels `(N,)` as int64.

    Raises: `UserError` for logits or labels of another shape or type.
    """
    _check_logits(logits)
    is_whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if labels.shape != logits.shape[:1] or not is_whole:
        raise UserError(
            f"labels: expected whole numbers ({len(logits)},), one for each row of logits, got "
            f"{_kind(labels)}"
        )
    return labels.long()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _no_such_class(logits: Tensor) -> UserError:
    return UserError(f"labels: expected classes 0..{logits.shape[1] - 1}, one is outside")


@typed
def difference_of_logits_ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the DLR loss, `(N,)`: the margin over the gap of the first and third logits.

    Source: Croce and Hein 2020, Eq. 6, with the sign of a margin: an attack on the classifier
        minimises it.
    Raises: `UserError` below 3 classes, where the third logit does not exist.
    """
    _check_logits(logits)
    logits = wide(logits)
    if logits.shape[1] < 3:
        raise UserError(
            f"loss: DLR needs at least 3 classes, the network has {logits.shape[1]}; "
            "use 'margin' instead"
        )
    top = logits.topk(3, dim=1).values  # (N, 3)
    return margin(logits, labels) / (top[:, 0] - top[:, 2]).clamp_min(1e-12)
