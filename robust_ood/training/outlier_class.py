"""Training with a class of outliers: ATOM and NTOM."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks import InLoopAttack
from robust_ood.errors import UserError
from robust_ood.perturb import Objective
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization


class ATOM(Method):
    """Attacked outliers as one more class.

    `min mean CE(F(x), y) + beta mean max CE(F(x_out + delta), K)`, F with K + 1 outputs.

    Source: Chen et al. 2021, "ATOM: Robustifying out-of-distribution detection using outlier
    mining". Its outliers are the hard ones of a pool: `hard_outliers` of a run, see
    `robust_ood.callbacks.HardOutliers`. It does not attack inliers, so a report in which both sides
    are attacked says more than its paper; `inlier_attack` trains on attacked inliers as well.

    The paper keeps the best of an attack's iterates; here it is the last, as in every method.

    The detector `outlier-class` scores with such a network, and `msp` with its K classes.

    Args:
        net: a `robust_ood.models.OutlierClass`, or anything with its `joint_logits`.
        outlier_attack: in-loop attack on outliers; 5 steps of 2/255 within 8/255 in the paper.
        inlier_attack: likewise on inliers; none in the paper.
        outlier_weight: beta, > 0; 1 in the paper.
        attack_mode, optimization, seed, weight_perturbation: as in `Method`.

    Raises:
        UserError: a network without an outlier class.
    """

    @typed
    def __init__(  # the settings that users have
        self,
        net: nn.Module,
        outlier_attack: InLoopAttack | None,
        inlier_attack: InLoopAttack | None = None,
        outlier_weight: float = 1.0,
        attack_mode: Literal["eval", "train"] = "eval",
        optimization: Optimization | None = None,
        seed: int = 0,
        weight_perturbation: float = 0.0,
    ) -> None:
        if not callable(getattr(net, "joint_logits", None)):
            raise UserError(
                f"net: {type(self).__name__} trains one more class, that of outliers, and "
                f"{type(net).__name__} has none; give robust_ood.models.OutlierClass, whose own "
                "net it is"
            )
        super().__init__(
            net,
            inlier_attack,
            outlier_attack,
            outlier_weight,
            attack_mode,
            optimization,
            seed=seed,
            weight_perturbation=weight_perturbation,
        )

    def trained_outputs(self) -> Objective:
        """Return the K + 1 logits, a callable of images."""
        net: Any = self.net
        joint: Objective = net.joint_logits
        return joint

    def outlier_values(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy `(N,)` of the outliers' class, the last of `(N, K + 1)`."""
        last = torch.full((len(logits),), logits.shape[1] - 1, device=logits.device)
        return losses.cross_entropy(logits, last)


class NTOM(ATOM):
    """ATOM without attacks: `min mean CE(F(x), y) + beta mean CE(F(x_out), K)`.

    Source: Chen et al. 2021. See `ATOM` for network and arguments.
    """

    @typed
    def __init__(
        self,
        net: nn.Module,
        outlier_weight: float = 1.0,
        optimization: Optimization | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            net, None, outlier_weight=outlier_weight, optimization=optimization, seed=seed
        )
