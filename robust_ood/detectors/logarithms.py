"""Softmax scores in logarithms: the same order of images, without ties where the softmax saturates.

In float32 a probability is exactly 1 beyond a margin of about 17, and an entropy exactly 0 beyond
about 100. What is computed here from the same logits is an increasing function of the published
value, and distinguishes margins up to those that float32 itself distinguishes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.errors import UserError

_SMALL = -60.0  # the logarithm of a probability so small that log(1 - p) is -p
_HALF = -math.log(2)


def tempered_log_odds(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Return `T (log p / (1 - p) + log(K - 1))` of the largest probability, `(N,)`, >= 0.

    p is the softmax of `logits / T`. The factor and the constant keep float32 as precise at T =
    1000, where all probabilities are close to 1/K, as at 1.

    Args:
        logits: `(N, K)`.
        temperature: T, > 0.
    """
    logits = losses.finite_logs(losses.wide(logits))
    require_two(logits)
    top = logits.topk(2, dim=1)
    first = top.values[:, :1]  # (N, 1)
    second = top.values[:, 1:]
    # The largest logit makes room for the second, whose term below is then 0.
    others = logits.scatter(1, top.indices[:, :1], second)  # (N, K)
    # T log of the mean of exp((z - second) / T) over the K - 1 others, without cancellation.
    terms = torch.expm1((others - second) / temperature)
    mean = terms.sum(1) / (logits.shape[1] - 1)
    return (first - second)[:, 0] - temperature * torch.log1p(mean)


def minus_log_entropy(logits: Tensor) -> Tensor:
    """Return minus the logarithm of the softmax's Shannon entropy, `(N,)`, >= -log log K.

    Args:
        logits: `(N, K)`.
    """
    log_p, classes, log_rest = _parts(logits)
    largest = log_p.gather(1, classes)  # (N, 1)
    largest = largest + _log_surprise(largest, log_rest)
    others = log_p.scatter(1, classes, -1.0)  # any number: the largest is put in its place below
    terms = (others + (-others).log()).scatter(1, classes, largest)  # (N, K)
    return -losses.finite_logs(terms).logsumexp(1)


def minus_log_generalised_entropy(logits: Tensor, gamma: float, top: int) -> Tensor:
    """Return minus the logarithm of the sum of `p^gamma (1 - p)^gamma`, `(N,)`, unbounded.

    Args:
        logits: `(N, K)`.
        gamma: exponent, > 0.
        top: number of largest probabilities in the sum, >= 1.
    """
    log_p, _, log_rest = _parts(logits)
    count = min(top, log_p.shape[1])
    log_top = log_p.topk(count, dim=1).values  # (N, M)
    log_complements = torch.cat([log_rest, torch.log1p(-log_top[:, 1:].exp())], dim=1)
    terms = (log_top + log_complements) * gamma
    return -losses.finite_logs(terms).logsumexp(1)


def minus_log_excess(logits: Tensor, exponent: Tensor) -> Tensor:
    """Return minus the logarithm of `sum of p / (p + (1 - p) p^g)` minus one, `(N,)`, unbounded.

    Each term exceeds its p by `p (1 - p) (1 - p^g) / (p + (1 - p) p^g)`, which is positive: without
    a difference, nothing cancels.

    Args:
        logits: `(N, K)`.
        exponent: g of each image, `(N,)`, in [0, 1).
    """
    log_p, classes, log_rest = _parts(logits)
    surprise = _log_surprise(log_p.gather(1, classes), log_rest)  # log(-log p), (N, 1)
    surprises = (-log_p.scatter(1, classes, -1.0)).log().scatter(1, classes, surprise)
    complements = torch.log1p(-log_p.scatter(1, classes, _SMALL).exp())
    complements = complements.scatter(1, classes, log_rest)  # log(1 - p), (N, K)
    log_exponent = exponent.clamp_min(torch.finfo(exponent.dtype).tiny).log()[:, None]
    lost = _log_complement(surprises + log_exponent)  # log(1 - p^g)
    power = complements + exponent[:, None] * log_p  # log((1 - p) p^g)
    terms = log_p + complements + lost - torch.logaddexp(log_p, power)
    return -losses.finite_logs(terms).logsumexp(1)


def _log_complement(log_x: Tensor) -> Tensor:
    """Return `log(1 - exp(-x))` of `log x`, of any shape; accurate also where x is tiny."""
    x = log_x.clamp(-10.0, 5.0).exp()
    return log_x.clamp_max(5.0) + (-torch.expm1(-x)).log() - x.log()


def log_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return `log p` and `log(1 - p)` of the largest probability, `(N,)` each.

    Args:
        logits: `(N, K)`.
    """
    log_p, classes, log_rest = _parts(logits)
    return log_p.gather(1, classes)[:, 0], log_rest[:, 0]


def _log_surprise(log_p: Tensor, log_rest: Tensor) -> Tensor:
    """Return `log(-log p)` from `log p` and `log(1 - p)`, of any shape; accurate also at p = 1."""
    # Each branch is kept where its gradient is finite, because the unselected one counts, too.
    far = (-log_p).clamp_min(0.5).log()
    close = log_rest.clamp(_SMALL, _HALF)
    # Where 1 - p is tiny, -log p is 1 - p.
    near = (-torch.log1p(-close.exp())).log() + (log_rest - close)
    return torch.where(log_rest > _HALF, far, near)


def require_two(logits: Tensor) -> None:
    """Raise `UserError` for logits `(N, K)` of fewer than two classes."""
    if logits.shape[1] < 2:
        raise UserError("net: gives one logit; expected one of each of 2 or more classes")


def _parts(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probabilities `(N, K)`, the likeliest class, and `log(1 - p)` of it, `(N, 1)`."""
    require_two(logits)
    log_p = losses.finite_logs(F.log_softmax(losses.wide(logits), dim=1))
    classes = log_p.argmax(1, keepdim=True)
    lowest = torch.finfo(log_p.dtype).min
    log_rest = log_p.scatter(1, classes, lowest).logsumexp(1, keepdim=True)
    return log_p, classes, log_rest
