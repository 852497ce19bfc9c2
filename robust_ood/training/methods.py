"""The methods of the papers, each a special case of the one objective in `Method`."""

from __future__ import annotations

from typing import Literal

from torch import nn

from robust_ood.arguments import typed
from robust_ood.attacks import InLoopAttack
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization


class Standard(Method):
    """Ordinary training: `min mean CE(F(x), y)`. See `Method` for the arguments."""

    @typed
    def __init__(
        self,
        net: nn.Module,
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        super().__init__(net, optimization=optimization, compile=compile, seed=seed)


class OE(Method):
    """Outlier exposure: `min mean CE(F(x), y) + lambda mean CE(F(x_out), uniform)`.

    Source: Hendrycks et al. 2019; lambda = 0.5 as there. See `Method` for the arguments.
    """

    @typed
    def __init__(
        self,
        net: nn.Module,
        outlier_weight: float = 0.5,
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


class ADV(Method):
    """Adversarial training: `min mean max CE(F(x + delta), y)`.

    Source: Madry et al. 2018; ALOE paper, "Possible Variants". See `Method` for the arguments.
    """

    @typed
    def __init__(  # the settings that users have
        self,
        net: nn.Module,
        inlier_attack: InLoopAttack,
        attack_mode: Literal["eval", "train"] = "eval",
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
        weight_perturbation: float = 0.0,
    ) -> None:
        super().__init__(
            net,
            inlier_attack,
            attack_mode=attack_mode,
            optimization=optimization,
            compile=compile,
            seed=seed,
            weight_perturbation=weight_perturbation,
        )


class AOE(Method):
    """Adversarial training with clean outliers.

    `min mean max CE(F(x + delta), y) + lambda mean CE(F(x_out), uniform)`. Source: ALOE paper,
    "Possible Variants". See `Method` for the arguments.
    """

    @typed
    def __init__(  # the settings that users have
        self,
        net: nn.Module,
        inlier_attack: InLoopAttack,
        outlier_weight: float = 0.5,
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
            optimization,
            compile,
            seed,
            weight_perturbation,
        )


class ALOE(Method):
    """Adversarial learning with inlier and outlier exposure.

    `min mean max CE(F(x + delta), y) + lambda mean max CE(F(x_out + delta), uniform)`. Source: ALOE
    Eq. 4. The attack on outliers is the one on inliers unless another is given. See `Method` for
    the arguments.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        inlier_attack: InLoopAttack,
        outlier_attack: InLoopAttack | None = None,
        outlier_weight: float = 0.5,
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
        if outlier_attack is None:
            self.outlier_attack = self.inlier_attack
