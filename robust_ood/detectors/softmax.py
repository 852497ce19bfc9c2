"""Scores of the softmax distribution: MSP, entropy and generalised entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.errors import UserError
from robust_ood.models import Outputs


class MSP(OutputsDetector):
    """The maximum softmax probability, in (1/K, 1].

    Source: Hendrycks and Gimpel 2017; ALOE Eq. 5, PRO Eq. 1 with its temperature. The surrogate is the log-odds of the
    same class, which order images as the probability does and keep their gradient where it saturates at 1.

    Args:
        net: classifier, images to logits.
        temperature: what the logits are divided by, > 0.
    """

    exact_surrogate = True

    def __init__(self, net: nn.Module, temperature: float = 1.0) -> None:
        super().__init__(net)
        if not temperature > 0:
            raise UserError(f"temperature: {temperature} is not > 0")
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def score(self, out: Outputs) -> Tensor:
        """Return the largest probability of each row of logits."""
        return F.softmax(self._scaled(out), dim=1).amax(1)

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the log-odds of the most probable class, unbounded."""
        logits = self._scaled(out)
        return losses.log_odds(logits, logits.argmax(1))

    def _scaled(self, out: Outputs) -> Tensor:
        return losses.wide(out.logits) / self.get_buffer("temperature")


class Entropy(OutputsDetector):
    """Minus the Shannon entropy of the softmax in nats, in [-log K, 0].

    Source: PRO Sec. 5.1 (PRO-ENT's base score), through `log_softmax` instead of the reference's `log(p + 1e-10)`.
    """

    def score(self, out: Outputs) -> Tensor:
        """Return the negative entropy of each row of logits."""
        return -losses.entropy(out.logits)


class GEN(OutputsDetector):
    """Minus the generalised entropy, `-sum of p^gamma (1 - p)^gamma` over the `top` largest probabilities, <= 0.

    Source: Liu et al. 2023; PRO Sec. 5.1, whose formula lacks the minus sign that its code has. Computed in logarithms,
    with `log(1 - p)` of the largest probability as the log-sum of the others: written out naively, the gradient is NaN
    as soon as the softmax saturates in float32.

    Args:
        net: classifier, images to logits.
        gamma: exponent, > 0; smaller is more sensitive to small probabilities.
        top: number of largest probabilities summed (M in the paper); all of them where the classes are fewer.
    """

    def __init__(self, net: nn.Module, gamma: float = 0.1, top: int = 100) -> None:
        super().__init__(net)
        if not gamma > 0:
            raise UserError(f"gamma: {gamma} is not > 0")
        if top < 1:
            raise UserError(f"top: {top} is not a number of classes >= 1")
        self.gamma, self.top = gamma, top

    def score(self, out: Outputs) -> Tensor:
        """Return the negative generalised entropy of each row of logits."""
        log_p = F.log_softmax(losses.wide(out.logits), dim=1)  # (N, K)
        top, classes = log_p.topk(min(self.top, log_p.shape[1]), dim=1)  # (N, M)
        rest_of_first = log_p.scatter(1, classes[:, :1], -torch.inf).logsumexp(1, keepdim=True)
        rest = torch.cat([rest_of_first, torch.log1p(-top[:, 1:].exp())], dim=1)  # log(1 - p), (N, M)
        return -((top + rest) * self.gamma).exp().sum(1)
