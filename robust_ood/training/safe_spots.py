"""Safe-spot-aware adversarial training, with and without auxiliary outliers."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks import InLoopAttack, budget_of
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization


class SafeSpotAware(Method):
    """Train on attacks from a nearby safer image, so that data points come to have safe spots.

    `min mean CE(F(x_a), y)`, where x_s is found from x by descending the cross-entropy of y within
    `spot_search`'s region, and x_a from x_s by climbing it within `inlier_attack`'s region around
    x_s. With outliers it adds `outlier_weight KL(uniform || F(x_out)) - safe_spot_weight
    min(CE(F(x_out_a), c), log K)`, where c is the class that the network gives x_out and x_out_a is
    found from x_out, towards and then away from c, in the same way.

    Source: safe spots paper Sec. 3.5 (S-FGSM+ADV, S-PGD+ADV and, with one step of 1.25 radius from
    a random start, S-FGSM+Fast: only the settings differ) and Eq. 4. As published, the third term
    has no lower bound: pushing one class's probability to zero gains without end. Here each image's
    loss counts up to log K, its value at the uniform prediction that the second term asks for;
    beyond it there is nothing to gain and no gradient. KL is computed up to its constant.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        spot_search: search for x_s: one step of the radius (S-FGSM), or 10 of a quarter of it
            (S-PGD), no random start.
        inlier_attack: attack from x_s: 10 steps of a quarter of the radius.
        outlier_weight: gamma, >= 0; the paper's main text gives no value, 0.5 is outlier
            exposure's.
        safe_spot_weight: lambda, >= 0; the paper's main text gives no value.
        attack_mode, optimization, compile, seed, weight_perturbation: as in `Method`.
    """

    takes_mixed_labels = False

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        spot_search: InLoopAttack,
        inlier_attack: InLoopAttack,
        outlier_weight: float = 0.0,
        safe_spot_weight: float = 0.0,
        attack_mode: Literal["eval", "train"] = "eval",
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
        weight_perturbation: float = 0.0,
    ) -> None:
        super().__init__(
            net,
            inlier_attack,
            None,
            outlier_weight,
            attack_mode,
            optimization=optimization,
            compile=compile,
            seed=seed,
            weight_perturbation=weight_perturbation,
        )
        if not safe_spot_weight >= 0:
            raise UserError(f"safe_spot_weight: {safe_spot_weight} is not >= 0")
        self.spot_search = budget_of("spot_search", spot_search)
        self.safe_spot_weight = safe_spot_weight

    @property
    def needs_outliers(self) -> bool:
        """Whether the loss reads auxiliary outliers."""
        return self.outlier_weight > 0 or self.safe_spot_weight > 0

    def objective(self, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        if not self.needs_outliers:
            (logits,) = self.logits(self.from_safe_spots(batch.images, batch.labels, batch))
            return self.inlier_loss(logits, batch)
        size = len(batch.images)
        images = batch.images
        targets = batch.labels
        if self.safe_spot_weight:
            images = torch.cat([images, batch.outliers])
            targets = torch.cat([targets, self.predictions(batch.outliers)])
        attacked = self.from_safe_spots(images, targets, batch)  # inliers, then outliers
        inliers, outliers, unsafe = self.logits(attacked[:size], batch.outliers, attacked[size:])
        loss = self.inlier_loss(inliers, batch) + self.outlier_weight * self.outlier_loss(outliers)
        if not self.safe_spot_weight:
            return loss
        escape_loss = losses.cross_entropy(unsafe, targets[size:])
        escaped = escape_loss.clamp_max(math.log(unsafe.shape[1])).mean()
        self.log("train/safe_spot_loss", escaped.detach())
        return loss - self.safe_spot_weight * escaped

    def from_safe_spots(self, images: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """Return images attacked, away from their target classes, from their safe spots."""

        def target_loss(logits: Tensor) -> Tensor:
            return losses.cross_entropy(logits, targets)

        assert self.spot_search is not None  # the constructor takes no None
        assert self.inlier_attack is not None
        spots = self.run_attack(self.spot_search, target_loss, images, batch, "safe spots")
        return self.run_attack(
            self.inlier_attack, lambda z: -target_loss(z), spots, batch, "attack safe spots"
        )
