"""The size of a loss gradient of the head's weights, in closed form."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network

# The weight of the log-odds in the surrogate. It is small, so that the score decides wherever it
# has a gradient.
_SHARE = 0.05


class GradNorm(OutputsDetector):
    """The L1 norm of the head's weight gradient of the divergence from uniform to softmax, >= 0.

    Source: Huang et al. 2021, Eq. 3 and 5: for a linear head the gradient is `(p - 1/K) f' / T`, so
    the norm is the product `|f|_1 |p - 1/K|_1 / T`, and no backward pass is needed. The authors'
    code and OpenOOD sum over classes where the paper averages, and so give K times the norm
    (`reference`).

    The second factor is constant once the softmax saturates in float32. Attackers also get the
    log-odds of the predicted class, whose gradients do not vanish there.

    Args:
        net: classifier with a linear head.
        temperature: T, > 0.
        reference: K times the norm, as the public codes give. The order of images is the same.
    """

    needs = "head"

    @typed
    def __init__(self, net: Network, temperature: float = 1.0, *, reference: bool = False) -> None:
        super().__init__(net)
        if not temperature > 0:
            raise UserError(f"temperature: expected a number > 0, got {temperature}")
        self.temperature = temperature
        self.reference = reference

    def score(self, out: Outputs) -> Tensor:
        """Return the norm of each image's gradient."""
        factor = 1
        if self.reference:
            factor = out.logits.shape[1]
        return self._feature_norm(out) * self._peakedness(out) * factor / self.temperature

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the log of the score plus a small share of the predicted class's log-odds."""
        logits = losses.wide(out.logits) / self.temperature
        log_odds = losses.log_odds(logits)
        product = self._feature_norm(out) * self._peakedness(out)
        # The product can be 0, whose logarithm is infinite.
        return product.clamp_min(1e-30).log() + _SHARE * log_odds

    def attack_surface(self) -> AttackSurface:
        """Return the surrogate, the score itself, then the log-odds of the predicted class."""
        return AttackSurface((self.surrogate, self, self.confidence))

    def _feature_norm(self, out: Outputs) -> Tensor:
        return losses.wide(out.features).abs().sum(1)

    def _peakedness(self, out: Outputs) -> Tensor:
        """Return the L1 distance `(N,)` of the softmax from uniform."""
        p = F.softmax(losses.wide(out.logits) / self.temperature, dim=1)  # (N, K)
        return (p - 1 / p.shape[1]).abs().sum(1)
