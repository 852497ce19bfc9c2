"""Training for low confidence around outliers: ACET and RATIO."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks import InLoopAttack
from robust_ood.training.method import Method
from robust_ood.training.methods import ALOE
from robust_ood.training.optimization import Optimization


class ACET(Method):
    """The largest confidence around an outlier, brought down.

    `min mean CE(F(x), y) + lambda mean max log max_k p_k(x_out + delta)`. Source: Hein et al. 2019,
    "Why ReLU networks yield high-confidence predictions", Eq. 7, whose outliers are noise and which
    attacks no inliers; lambda = 1. The loss is bounded below by -log K, where the softmax is
    uniform.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        outlier_attack: in-loop attack on outliers; Linf 0.3 for MNIST, 40 steps in the paper.
        outlier_weight: lambda, >= 0.
        inlier_attack: likewise on inliers; none in the paper.
        attack_mode, optimization, compile, seed, weight_perturbation: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        outlier_attack: InLoopAttack,
        outlier_weight: float = 1.0,
        inlier_attack: InLoopAttack | None = None,
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

    def outlier_values(self, logits: Tensor) -> Tensor:
        """Return the logarithm of the confidence, `(N,)` in -log K..0."""
        wide = losses.wide(logits)
        return wide.amax(1) - wide.logsumexp(1)


class RATIO(ALOE):
    """Adversarial training on inliers and on outliers, each within an L2 ball of its own.

    `min mean max CE(F(x + delta), y) + lambda mean max CE(F(x_out + delta), uniform)`: the form of
    ALOE Eq. 4, which came at the same time, with other balls. Source: Augustin et al. 2020,
    "Adversarial robustness on in- and out-distribution improves explainability"; L2 radius 0.5 in,
    1.0 out, lambda = 1 with as many outliers as inliers.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        inlier_attack: in-loop attack on inliers.
        outlier_attack: likewise on outliers.
        outlier_weight: lambda, >= 0.
        attack_mode, optimization, compile, seed, weight_perturbation: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        inlier_attack: InLoopAttack,
        outlier_attack: InLoopAttack,
        outlier_weight: float = 1.0,
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
