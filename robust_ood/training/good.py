"""Training for low guaranteed confidence on outliers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.bounds.interval import pixel_interval
from robust_ood.bounds.scores import gap_upper
from robust_ood.bounds.trace import bound
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.losses import wide
from robust_ood.regions import Fraction
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization
from robust_ood.training.ramps import Ramp, checked_ramp, climbed


class GOOD(Method):
    """Outliers whose logits are guaranteed to stay close to each other in an Linf ball.

    `min mean CE(F(x), y) + outlier_weight mean L(x_out)`. v is the interval bound of the largest
    minus the smallest logit in the ball around an outlier. L is `log(1 + v^2 / 2)` for the share
    `quantile` of the batch's outliers with the smallest v, and the same of the clean logits for the
    rest. Source: GOOD (Bitterwolf et al. 2020), Eq. 10 to 12; with `quantile` q it is GOOD100 for
    1, GOOD80 for 0.8. The ball is cut with the range of pixels, which the published code does not.

    Bounds are of the network in eval mode: BatchNorm has its running statistics there.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`, of layers that `bounds` knows.
        radius: of the Linf ball, in pixel fractions, >= 0; 0.01 for CIFAR-10 in the paper.
        quantile: q, in [0, 1].
        outlier_weight: kappa, >= 0; 1 for CIFAR-10 and 0.3 for MNIST in the paper.
        weight_ramp: shares of the run between which the weight climbs from 0; epochs 0 to 300 of
            900 in the paper.
        radius_ramp: likewise the radius; epochs 4 to 204 of 900.
        optimization, compile, seed: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        radius: float | Fraction,
        quantile: float = 1.0,
        outlier_weight: float = 1.0,
        weight_ramp: Ramp = (0.0, 1 / 3),
        radius_ramp: Ramp = (4 / 900, 204 / 900),
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        super().__init__(
            net,
            outlier_weight=outlier_weight,
            optimization=optimization,
            compile=compile,
            seed=seed,
        )
        self.radius = float(Fraction(radius))
        if not self.radius >= 0:
            raise UserError(f"radius: {radius} is not >= 0")
        if not 0 <= quantile <= 1:
            raise UserError(f"quantile: {quantile} is not in [0, 1]")
        self.quantile = quantile
        self.weight_ramp = checked_ramp("weight_ramp", weight_ramp)
        self.radius_ramp = checked_ramp("radius_ramp", radius_ramp)

    def objective(self, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        inlier_logits, outlier_logits = self.logits(batch.images, batch.outliers)
        loss = self.inlier_loss(inlier_logits, batch)
        if not len(outlier_logits):
            return loss
        weight = self.outlier_weight * climbed(self.weight_ramp, self.progress)
        radius = self.radius * climbed(self.radius_ramp, self.progress)
        outlier_loss = self.guaranteed_loss(batch.outliers, outlier_logits, radius)
        self.log("train/outlier_loss", outlier_loss.detach())
        self.log("train/outlier_weight", weight)
        self.log("train/radius", radius)
        return loss + weight * outlier_loss

    def guaranteed_loss(self, outliers: Tensor, logits: Tensor, radius: float) -> Tensor:
        """Return the mean loss of outliers.

        Args:
            outliers: `(M, C, H, W)` in [0, 1].
            logits: their logits `(M, K)`.
            radius: of the Linf ball, in pixel fractions.
        """
        # Bounds of easy images are worth more than those of hard ones, which clean logits serve.
        bounded = gap_upper(bound(self.net, pixel_interval(outliers, radius)))  # (M,)
        easiest = bounded.detach().argsort(stable=True)
        count = int(self.quantile * len(outliers) + 1e-6)
        logits = wide(logits)
        clean = logits.amax(1) - logits.amin(1)  # (M,)
        guaranteed = torch.zeros_like(bounded, dtype=torch.bool)
        guaranteed[easiest[:count]] = True
        gaps = torch.where(guaranteed, bounded, clean.to(bounded.dtype))
        return torch.log1p(gaps**2 / 2).mean()
