"""Training for outputs that do not change around an image: HALO."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks import InLoopAttack
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models import load_network
from robust_ood.modes import mode
from robust_ood.perturb import Objective
from robust_ood.training.freezing import frozen
from robust_ood.training.methods import ALOE
from robust_ood.training.optimization import Optimization


class HALO(ALOE):
    """TRADES on inliers and on outliers, with a helper that says what a large step may look like.

    `min CE(x, y) + eta CE(x_out, uniform) + beta (KL(x || x') + eta KL(x_out || x_out'))
    + gamma CE(x + 2 (x' - x), h(x'))`, each term a mean. x' is the attacked image, which raises
    KL(x || x'), the divergence of its softmax from the clean one's (Zhang et al. 2019, TRADES, Eq.
    5). h is the class that a naturally trained network gives to x' (Rade and Moosavi-Dezfooli 2022,
    HAT); without one the last term is left out. Source: HALO (2025); beta 3, gamma 0.5, eta 2,
    Linf 8/255 there.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        inlier_attack: in-loop attack on inliers.
        outlier_attack: likewise on outliers; as on inliers by default.
        outlier_weight: eta, >= 0; 0 trains without outliers.
        consistency_weight: beta, >= 0.
        helper: checkpoint of a naturally trained network of the same classes, or such a network.
        helper_weight: gamma, >= 0.
        attack_mode, optimization, compile, seed, weight_perturbation: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        inlier_attack: InLoopAttack,
        outlier_attack: InLoopAttack | None = None,
        outlier_weight: float = 2.0,
        consistency_weight: float = 3.0,
        helper: Path | nn.Module | None = None,
        helper_weight: float = 0.5,
        attack_mode: Literal["eval", "train"] = "eval",
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
        weight_perturbation: float = 0.0,
    ) -> None:
        super().__init__(
            net,
            inlier_attack,
            outlier_attack,
            outlier_weight,
            attack_mode,
            optimization,
            compile,
            seed,
            weight_perturbation,
        )
        for name, weight in (
            ("consistency_weight", consistency_weight),
            ("helper_weight", helper_weight),
        ):
            if not weight >= 0:
                raise UserError(f"{name}: {weight} is negative or NaN; expected a number >= 0")
        for name, attack in (
            ("inlier_attack", self.inlier_attack),
            ("outlier_attack", self.outlier_attack),
        ):
            if attack is not None and not attack.random_start:
                raise UserError(
                    f"{name}.random_start: false begins at the image, where the divergence from "
                    "its own softmax has no slope; expected true"
                )
        self.consistency_weight = consistency_weight
        self.helper_weight = helper_weight
        # Past `nn.Module`'s registry: it is not trained, and no part of a checkpoint.
        self.__dict__["helper"] = _loaded(helper)

    def inlier_goal(self, batch: Batch) -> Objective:
        """Return minus the divergence from the clean inliers' softmax, a function of logits."""
        return self._away_from(batch.images, "clean inliers")

    def outlier_goal(self, batch: Batch) -> Objective:
        """Return minus the divergence from the clean outliers' softmax, a function of logits."""
        return self._away_from(batch.outliers, "clean outliers")

    def objective(self, batch: Batch) -> Tensor:
        """Return the scalar to descend for a batch, and log its terms."""
        moved, moved_outliers = self.attacked(batch)
        images = [batch.images, batch.outliers, moved, moved_outliers]
        helped = self.helper is not None and self.helper_weight > 0
        if helped:
            images.append((2 * moved - batch.images).clamp(0, 1))
        logits = self.logits(*images)
        loss = self.loss(logits[0], logits[1], batch)
        consistency = _divergence(logits[0], logits[2]).mean()
        if len(batch.outliers):
            of_outliers = _divergence(logits[1], logits[3]).mean()
            consistency = consistency + self.outlier_weight * of_outliers
        self.log("train/consistency_loss", consistency.detach())
        loss = loss + self.consistency_weight * consistency
        if helped:
            far = losses.cross_entropy(logits[4], self._helped(moved)).mean()
            self.log("train/helper_loss", far.detach())
            loss = loss + self.helper_weight * far
        return loss

    def _away_from(self, images: Tensor, purpose: str) -> Objective:
        if not len(images):
            return lambda logits: logits.new_zeros(len(logits))

        def of_clean() -> Tensor:
            with mode(self.net, training=self.attack_mode == "train"), torch.no_grad():
                logits: Tensor = logits_of(self.net(images))
            return logits

        clean = self.weight_perturbation.once(purpose, of_clean)
        return lambda logits: -_divergence(clean, logits)

    def _helped(self, images: Tensor) -> Tensor:
        """Return the classes `(N,)` that the helper gives."""
        helper = self.helper
        assert isinstance(helper, nn.Module)
        helper.to(images.device)
        with mode(helper, training=False), frozen(helper), torch.no_grad():
            labels: Tensor = logits_of(helper(images)).argmax(1)
        return labels


def _loaded(helper: Path | nn.Module | None) -> nn.Module | None:
    if helper is None or isinstance(helper, nn.Module):
        return helper
    try:
        return load_network(helper)
    except UserError as error:
        raise UserError(f"helper: {error}") from error


def _divergence(clean: Tensor, moved: Tensor) -> Tensor:
    """Return `KL(softmax(clean) || softmax(moved))`, `(N,)` >= 0."""
    expected = F.log_softmax(losses.wide(clean), dim=1)
    found = F.log_softmax(losses.wide(moved), dim=1)
    return (expected.exp() * (losses.finite_logs(expected) - losses.finite_logs(found))).sum(1)
