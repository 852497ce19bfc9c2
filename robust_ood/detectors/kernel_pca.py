"""The reconstruction error of features under kernel PCA: CoP and CoRP."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import ClassMoments
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network
from robust_ood.randomness import generator


class KernelPCA(OutputsDetector):
    """Minus the length of the mapped feature's part outside the principal subspace, <= 0.

    Source: Fang et al. 2024 (kernel PCA for OOD detection). `kernel="cosine"` is their CoP:
    penultimate features of unit length; "gaussian" is CoRP: random Fourier features of those,
    `sqrt(2 / M) cos(W f + u)`, where the entries of W are normal with variance 2 gamma and u is
    uniform in [0, 2 pi).
    Mapped features are centred, and the subspace is spanned by as few leading eigenvectors of their
    covariance as explain the given share of the variance. Their fusion with other scores is `mean`.

    The random draws are a function of `seed` and the sizes: one map for all images.

    Args:
        net: classifier.
        kernel: "cosine" or "gaussian".
        explained: share of the variance inside the subspace, in (0, 1); 0.85 for CoP and 0.8 for
            CoRP on CIFAR-10 in the authors' scripts, 0.99 and 0.5 on ImageNet.
        gamma: of the Gaussian kernel `exp(-gamma |f - g|^2)`, > 0.
        random_features: M, >= 1.
        seed: of the random features.
    """

    needs = "features"

    @typed
    def __init__(
        self,
        net: Network,
        kernel: Literal["cosine", "gaussian"] = "gaussian",
        explained: float = 0.8,
        gamma: float = 2.0,
        random_features: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__(net)
        if kernel not in ("cosine", "gaussian"):
            raise UserError(f"kernel: expected 'cosine' or 'gaussian', got {kernel!r}")
        if not 0 < explained < 1:
            raise UserError(f"explained: expected a share in (0, 1), got {explained}")
        if not gamma > 0:
            raise UserError(f"gamma: expected a number > 0, got {gamma}")
        if random_features < 1:
            raise UserError(f"random_features: expected a whole number >= 1, got {random_features}")
        self.kernel = kernel
        self.explained = explained
        self.gamma = gamma
        self.random_features = random_features
        self.seed = seed
        self.declare("mean", "subspace", "frequencies", "phases")

    def learn(self) -> Rounds:
        """Find the mean and the principal subspace by one pass."""
        moments = ClassMoments(1)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            features = seen.out.features
            if not self.get_buffer("phases").numel():
                self._draw(features.shape[1])
            return self.mapped(seen.out), features.new_zeros(len(features)).long()

        yield [self.reading(moments, read)]
        values, vectors = torch.linalg.eigh(moments.overall)  # ascending
        values = values.flip(0).clamp_min(0)
        if not values[0] > 0:
            raise UserError("loader: the features do not vary over the images")
        shares = values.cumsum(0) / values.sum()
        count = int(torch.searchsorted(shares, self.explained)) + 1
        self.keep(mean=moments.mean, subspace=vectors.flip(1)[:, :count])

    def _draw(self, size: int) -> None:
        """Draw frequencies `(D, M)` and phases `(M,)` for features of `size` dimensions."""
        draws = generator(self.seed, "random Fourier features")
        shape = (size, self.random_features)
        frequencies = torch.randn(shape, generator=draws) * math.sqrt(2 * self.gamma)
        phases = 2 * math.pi * torch.rand(self.random_features, generator=draws)
        self.keep(frequencies=frequencies, phases=phases)

    def mapped(self, out: Outputs) -> Tensor:
        """Return the mapped features: `(N, D)`, or `(N, M)` random Fourier features."""
        features = F.normalize(losses.wide(out.features), dim=1)
        if self.kernel == "cosine":
            return features
        angles = features @ self.learned("frequencies").to(features)
        angles = angles + self.learned("phases").to(features)
        return angles.cos() * math.sqrt(2 / self.random_features)

    def score(self, out: Outputs) -> Tensor:
        """Return minus the length of the part outside the subspace."""
        return -(-self.surrogate_score(out)).clamp_min(torch.finfo(torch.float32).tiny).sqrt()

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return minus the squared length, whose gradient is finite also where it is 0."""
        mapped = self.mapped(out)
        centered = mapped - self.learned("mean").to(mapped)
        basis = self.learned("subspace").to(mapped)
        outside = centered - (centered @ basis) @ basis.T
        return -outside.square().sum(1)

    def attack_surface(self) -> AttackSurface:
        """Return minus the squared length, which orders images as the score does."""
        return AttackSurface((self.surrogate,), exact=True)
