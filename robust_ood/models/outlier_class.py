"""A classifier with more classes, those of outliers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models.heads import find_head
from robust_ood.models.outputs import Outputs, outputs


class OutlierClass(nn.Module):
    """A classifier of K classes, and a logit of the class of outliers on the same features.

    Images `(N, C, H, W)` in [0, 1] to logits `(N, K)`. So accuracy, and detectors that read logits,
    are of the K classes; `outlier_logit` gives the one more, and `joint_logits` all K + 1, the
    outliers' last. Both layers together are the head of K + 1 outputs of ATOM (Chen et al. 2021),
    cut before its last row, or the head of SOFL (Mohseni et al. 2020), which has several classes of
    outliers: their logit is then that of being in any of them.

    Args:
        net: classifier with a linear head, images to logits `(N, K)`.
        outliers: M, how many classes are of outliers, >= 1.

    Raises:
        UserError: no linear head, or no class of outliers.
    """

    @typed
    def __init__(self, net: nn.Module, outliers: int = 1) -> None:
        super().__init__()
        if isinstance(net, OutlierClass):
            raise UserError("net: has an outlier class already")
        if outliers < 1:
            raise UserError(f"outliers: expected a number of classes >= 1, got {outliers}")
        self.net = net
        width = find_head(net).in_features
        self.outlier = nn.Linear(width, outliers)
        layers = getattr(net, "feature_layers", ())
        self.feature_layers = tuple(f"net.{name}" for name in layers)

    @property
    def settings(self) -> dict[str, Any]:
        """What builds this network again."""
        return {"net": self.net, "outliers": self.outlier.out_features}

    @property
    def head(self) -> nn.Linear:
        """The last linear layer of the K classes."""
        return find_head(self.net)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K)` of the classes."""
        logits: Tensor = logits_of(self.net(images))
        return logits

    def outlier_logit(self, out: Outputs) -> Tensor:
        """Return the outliers' logit `(N,)` of what a forward pass gave."""
        logits: Tensor = self.outlier(out.features)  # (N, M)
        if logits.shape[1] == 1:
            return logits[:, 0]
        return logits.logsumexp(1)

    def joint_logits(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K + 1)`, the outliers' last."""
        out = outputs(self.net, images)
        return torch.cat([out.logits, self.outlier_logit(out)[:, None]], dim=1)
