"""Training for randomised smoothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.regions import Fraction
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization


class GaussianNoise(Method):
    """Ordinary training on noisy images: `min mean CE(F(x + n), y)`, n normal.

    With `outlier_weight` it adds outlier exposure, of noisy outliers: networks for smoothed
    detectors. Source: Cohen et al. 2019, Sec. 3.3; the safe spots paper's Gaussian model. Noisy
    images are not clipped, as there.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        sigma: standard deviation in pixel fractions, > 0; 0.1 in the safe spots code.
        outlier_weight: lambda, >= 0; 0 trains without outliers.
        optimization, compile, seed: as in `Method`.
    """

    @typed
    def __init__(
        self,
        net: nn.Module,
        sigma: float | Fraction = 0.1,
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
        outlier_weight: float = 0.0,
    ) -> None:
        super().__init__(
            net,
            outlier_weight=outlier_weight,
            optimization=optimization,
            compile=compile,
            seed=seed,
        )
        self.sigma = float(Fraction(sigma, "sigma"))
        if not self.sigma > 0:
            raise UserError(f"sigma: {sigma} is not > 0")

    def attacked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return noisy inliers and outliers."""
        return (
            self._noisy(batch.images, "gaussian noise", batch),
            self._noisy(batch.outliers, "gaussian noise of outliers", batch),
        )

    def _noisy(self, images: Tensor, purpose: str, batch: Batch) -> Tensor:
        draws = self.draws(purpose, batch)
        noise = torch.randn(images.shape, generator=draws, device=draws.device)
        return images + self.sigma * noise
