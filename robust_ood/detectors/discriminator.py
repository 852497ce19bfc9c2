"""The score of networks with a discriminator of inliers."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.errors import UserError
from robust_ood.models import Discriminated, Outputs
from robust_ood.models.wrap import Network


class DiscriminatorScore(OutputsDetector):
    """The discriminator's logit, unbounded.

    It orders images as the discriminator's probability does, which ties where it is close to 0 or 1
    and has no gradient there. Source: ATD (Azizmalayeri et al. 2022), where the score is that
    probability; `published` is it.

    Args:
        net: a `robust_ood.models.Discriminated`.
    """

    @typed
    def __init__(self, net: Network) -> None:
        if not isinstance(net, Discriminated):
            raise UserError(
                f"net: the detector reads a discriminator's logit, and {type(net).__name__} has no "
                "discriminator; expected a robust_ood.models.Discriminated"
            )
        super().__init__(net)

    def score(self, out: Outputs) -> Tensor:
        """Return the logits `(N,)`."""
        net = self.net
        assert isinstance(net, Discriminated)
        return losses.wide(net.discriminate(out))

    def published_score(self, out: Outputs) -> Tensor:
        """Return the probability of an inlier, `(N,)` in 0..1."""
        return torch.sigmoid(self.score(out))
