"""The score of networks with a class of outliers."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.errors import UserError
from robust_ood.models import OutlierClass, Outputs
from robust_ood.models.wrap import Network


class OutlierClassScore(OutputsDetector):
    """The log-odds against the class of outliers, `logsumexp(z) - z_out`, unbounded.

    It orders images as minus that class's probability, which ties where the probability is close to
    0 or 1 and has no gradient there. Source: Chen et al. 2021 (ATOM), Sec. 3, where the score is
    that probability; `published` is minus it.

    Args:
        net: a `robust_ood.models.OutlierClass`.
    """

    @typed
    def __init__(self, net: Network) -> None:
        if not isinstance(net, OutlierClass):
            raise UserError(
                f"net: the detector reads the logit of a class of outliers, and "
                f"{type(net).__name__} has none; expected a robust_ood.models.OutlierClass"
            )
        super().__init__(net)

    def score(self, out: Outputs) -> Tensor:
        """Return the log-odds `(N,)`."""
        return losses.wide(out.logits).logsumexp(1) - losses.wide(self._outlier_logit(out))

    def published_score(self, out: Outputs) -> Tensor:
        """Return minus the probability of the outliers' class, `(N,)` in -1..0."""
        return -torch.sigmoid(-self.score(out))

    def _outlier_logit(self, out: Outputs) -> Tensor:
        net = self.net
        assert isinstance(net, OutlierClass)
        return net.outlier_logit(out)
