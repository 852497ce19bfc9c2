"""Scores of the logits: their maximum, their free energy, and how far they are from uniform."""

from __future__ import annotations

from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network


class MaxLogit(OutputsDetector):
    """The largest logit, unbounded. Source: Hendrycks et al. 2022 (MLS)."""

    def score(self, out: Outputs) -> Tensor:
        """Return the largest entry of each row of logits."""
        return losses.wide(out.logits).amax(1)


class Energy(OutputsDetector):
    """Minus the free energy, `T logsumexp(z / T)`, unbounded.

    Source: Liu et al. 2020, Eq. 4 (EBO in OpenOOD).

    Args:
        net: classifier, images to logits.
        temperature: T, > 0.
    """

    @typed
    def __init__(self, net: Network, temperature: float = 1.0) -> None:
        super().__init__(net)
        if not temperature > 0:
            raise UserError(f"temperature: expected a number > 0, got {temperature}")
        self.temperature = temperature

    def score(self, out: Outputs) -> Tensor:
        """Return the negative free energy of each row of logits."""
        tempered = losses.wide(out.logits) / self.temperature
        return self.temperature * tempered.logsumexp(1)


class OutlierExposureScore(OutputsDetector):
    """The cross-entropy from uniform to the softmax, `logsumexp(z) - mean(z)`, >= log K.

    Source: Hendrycks et al. 2019 (outlier exposure): the score in their code, for networks trained
    with their loss. Their score counts OOD as positive and is `mean(z) - logsumexp(z)`, which is
    largest where the softmax is uniform; this one is its negative.
    """

    def score(self, out: Outputs) -> Tensor:
        """Return the cross-entropy to uniform of each row of logits."""
        return losses.cross_entropy_to_uniform(out.logits)
