"""Fine-tuning to a margin between the energies of inliers and outliers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks import InLoopAttack
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.perturb import Objective
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization


class EnergyMargin(Method):
    """Squared hinges that push energies of inliers below one margin, of outliers above another.

    `min mean CE(F(x), y) + w (mean max(0, E(x) - m_in)^2 + mean max(0, m_out - E(x_out))^2)`, E =
    -logsumexp of the logits. Source: Liu et al. 2020, "Energy-based out-of-distribution detection",
    Eq. 8 and 9, which fine-tunes a classifier: give its weights as `--init_from`. Attacks, which
    the paper has not, raise these terms. The detector `energy` scores with such a network.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        inlier_margin: m_in, < m_out; -23 for CIFAR-10 in the paper.
        outlier_margin: m_out; -5 there.
        outlier_weight: w, > 0; 0.1 there.
        inlier_attack, outlier_attack: in-loop attacks; none in the paper.
        attack_mode, optimization, compile, seed, weight_perturbation: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        inlier_margin: float = -23.0,
        outlier_margin: float = -5.0,
        outlier_weight: float = 0.1,
        inlier_attack: InLoopAttack | None = None,
        outlier_attack: InLoopAttack | None = None,
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
        if not inlier_margin < outlier_margin:
            raise UserError(
                f"inlier_margin: {inlier_margin} is not below outlier_margin {outlier_margin}"
            )
        self.inlier_margin = inlier_margin
        self.outlier_margin = outlier_margin

    def inlier_goal(self, batch: Batch) -> Objective:
        """Return minus an inlier's terms, a function of logits."""

        def goal(logits: Tensor) -> Tensor:
            terms = self.outlier_weight * self._above(logits)
            return -losses.cross_entropy(logits, batch.labels) - terms

        return goal

    def outlier_goal(self, batch: Batch) -> Objective:
        """Return the energy of an outlier: its hinge grows as it falls, but is flat at first."""
        return _energy

    def outlier_values(self, logits: Tensor) -> Tensor:
        """Return `max(0, m_out - E)^2`, `(N,)`."""
        return (self.outlier_margin - _energy(logits)).clamp(min=0).square()

    def loss(self, inlier_logits: Tensor, outlier_logits: Tensor, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        above = self._above(inlier_logits).mean()
        self.log("train/energy_loss", above.detach())
        rest = super().loss(inlier_logits, outlier_logits, batch)
        return rest + self.outlier_weight * above

    def _above(self, logits: Tensor) -> Tensor:
        return (_energy(logits) - self.inlier_margin).clamp(min=0).square()


def _energy(logits: Tensor) -> Tensor:
    """Return the free energy `-logsumexp(z)`, `(N,)`."""
    return -losses.wide(logits).logsumexp(1)
