"""How often training images have brought neurons into the states that an image brings: NAC."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import BinCounts
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network


class NAC(OutputsDetector):
    """The mean coverage of the states of the penultimate neurons, in [0, 1].

    Source: Liu et al. 2024 (neuron activation coverage, NAC-UE). A neuron's state is `sigmoid(alpha
    f_i dKL/df_i)`, where KL is the divergence from uniform to the softmax; for a linear head the
    derivative is `W' (p - 1/K)`, so no backward pass is needed. The states of training images are
    counted in `bins` of equal width in [0, 1], and a state's coverage is its bin's count over
    `filled`, at most 1. The authors' code makes M edges of them, which is one bin less, and gives a
    state of exactly 1 no coverage; here it belongs to the last bin. pytorch-ood's bins are denser
    towards 0 and 1.

    Of the paper's layers this is the last one, `avgpool` in its code; the others need a gradient of
    feature maps. Coverage is constant within a bin: attackers get it interpolated.

    Args:
        net: classifier with a linear head.
        alpha: steepness of the sigmoid, > 0.
        bins: M, >= 2.
        filled: how many training images cover a bin wholly (O* in the paper), > 0.
    """

    needs = "head"

    @typed
    def __init__(
        self, net: Network, alpha: float = 100.0, bins: int = 50, filled: float = 50.0
    ) -> None:
        super().__init__(net)
        if not alpha > 0:
            raise UserError(f"alpha: expected a number > 0, got {alpha}")
        if bins < 2:
            raise UserError(f"bins: expected a whole number >= 2, got {bins}")
        if not filled > 0:
            raise UserError(f"filled: expected a number > 0, got {filled}")
        self.alpha = alpha
        self.bins = bins
        self.filled = filled
        self.declare("covered")

    def learn(self) -> Rounds:
        """Count the states of each neuron by one pass."""
        counts = BinCounts(self.bins)
        yield [self.reading(counts, self._read)]
        # Whole numbers, whose sums are exact: equal coverages stay equal.
        self.keep(covered=counts.counts.double().clamp_max(self.filled))  # (D, bins)

    def _read(self, seen: SeenBatch) -> tuple[Tensor]:
        return (self._bins_of(self._states(seen.out)),)

    def score(self, out: Outputs) -> Tensor:
        """Return the mean coverage of the neurons' states."""
        states = self._states(out)  # (N, D)
        covered = self.learned("covered").to(states).T  # (bins, D)
        counts = covered.gather(0, self._bins_of(states)).sum(1)
        return counts / (self.filled * states.shape[1])

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the mean coverage `(N,)`, interpolated between the bins' centres."""
        states = self._states(out)
        covered = self.learned("covered").to(states).T  # (bins, D)
        position = (states * self.bins - 0.5).clamp(0, self.bins - 1)
        lower = position.detach().floor().clamp_max(self.bins - 2).long()
        share = position - lower
        values = (1 - share) * covered.gather(0, lower) + share * covered.gather(0, lower + 1)
        return values.mean(1) / self.filled

    def magnitude(self, out: Outputs) -> Tensor:
        """Return the mean `(N,)` of `|f_i dKL/df_i|`, whose gradient vanishes in no bin."""
        return self._products(out).abs().mean(1)

    def attack_surface(self) -> AttackSurface:
        """Return the interpolated coverage, then what leads out of bins in which it is flat.

        Steps between bins are small differences of probabilities, so attacks are in float32.
        """
        unsure = self.stand_in(lambda out: -self.magnitude(out))
        return AttackSurface(
            (self.surrogate, unsure, self.stand_in(self.magnitude), self.confidence),
            needs_float32=True,
        )

    def _products(self, out: Outputs) -> Tensor:
        features = losses.wide(out.features)
        weight = out.head.weight.to(features)
        logits = losses.wide(out.logits)
        excess = F.softmax(logits, dim=1) - 1 / logits.shape[1]  # dKL/dz, (N, K)
        return features * (excess @ weight)

    def _states(self, out: Outputs) -> Tensor:
        """Return the state of each penultimate neuron, `(N, D)` in [0, 1]."""
        return torch.sigmoid(self.alpha * self._products(out))

    def _bins_of(self, states: Tensor) -> Tensor:
        return (states * self.bins).floor().clamp(0, self.bins - 1).long()
