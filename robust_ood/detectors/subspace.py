"""The part of a feature outside the in-distribution's principal subspace: residual and ViM."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import Average, ClassMoments, double
from robust_ood.errors import UserError
from robust_ood.models import Outputs, find_head
from robust_ood.models.wrap import Network


class Residual(OutputsDetector):
    """Minus the length of the penultimate feature's part outside the principal subspace, <= 0.

    Source: Wang et al. 2022 (ViM), Sec. 4.1: features are centred at `-pinv(W) b` of the head,
    where all logits are zero; the subspace is spanned by the leading eigenvectors of their second
    moment on training images.

    Args:
        net: classifier.
        dimensions: of the principal subspace, in 1..D-1. By default as in the authors' code: 1000
            for features of 2048 or more dimensions, 512 from 768, half of them below.
    """

    needs = "head"

    @typed
    def __init__(self, net: Network, dimensions: int | None = None) -> None:
        super().__init__(net)
        size = find_head(self.net).in_features
        if dimensions is None:
            dimensions = _default_dimensions(size)
        if isinstance(dimensions, bool) or not isinstance(dimensions, int):
            raise UserError(f"dimensions: {dimensions!r} is not a whole number")
        if not 1 <= dimensions < size:
            raise UserError(
                f"dimensions: expected 1..{size - 1} for features of {size} dimensions, "
                f"got {dimensions}"
            )
        self.dimensions = dimensions
        self.declare("origin", "complement")

    def learn(self) -> Rounds:
        """Find the complement of the principal subspace, by one pass."""
        moments = ClassMoments(1)  # of all features together, as if there were one class

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            one_class = seen.out.logits.new_zeros(len(seen.images)).long()
            return seen.out.features, one_class

        yield [self.reading(moments, read)]
        head = find_head(self.net)
        weight = double(head.weight)  # (K, D)
        bias = weight.new_zeros(len(weight))
        if head.bias is not None:
            bias = double(head.bias)
        origin = -torch.linalg.pinv(weight) @ bias  # (D,)
        # Columns, in ascending order of the eigenvalues: the last ones span the subspace.
        directions = torch.linalg.eigh(moments.around(origin)).eigenvectors  # (D, D)
        self.keep(origin=origin, complement=directions[:, : -self.dimensions])

    def residual(self, out: Outputs) -> Tensor:
        """Return the length of the part outside the subspace, `(N,)`."""
        features = losses.wide(out.features)
        origin = self.learned("origin").to(features)
        complement = self.learned("complement").to(features)  # (D, D - dimensions)
        outside = (features - origin) @ complement
        length: Tensor = torch.linalg.vector_norm(outside, dim=1)
        return length

    def score(self, out: Outputs) -> Tensor:
        """Return minus the length of the residual."""
        return -self.residual(out)


class ViM(Residual):
    """The free energy minus a virtual logit, `logsumexp(z) - alpha |residual|`, unbounded.

    Source: Wang et al. 2022, Eq. 7, as in its code; the same order as minus the virtual class's
    probability. alpha is the mean largest logit over the mean residual on the training images.

    Args:
        net: classifier.
        dimensions: as in `Residual`.
    """

    @typed
    def __init__(self, net: Network, dimensions: int | None = None) -> None:
        super().__init__(net, dimensions)
        self.declare("alpha")

    def learn(self) -> Rounds:
        """Find the subspace by one pass and alpha by a second one."""
        yield from super().learn()
        average = Average()

        def read(seen: SeenBatch) -> tuple[Tensor]:
            largest = seen.out.logits.amax(1)
            return (torch.stack([largest, self.residual(seen.out)], dim=1),)  # (N, 2)

        yield [self.reading(average, read)]
        logit, residual = average.mean
        if not residual > 0:
            raise UserError(
                "dimensions: no training feature has a part outside the principal subspace; "
                "give it fewer dimensions"
            )
        self.keep(alpha=logit / residual)

    def score(self, out: Outputs) -> Tensor:
        """Return the free energy minus the virtual logit."""
        logits = losses.wide(out.logits)
        virtual_logit = self.learned("alpha").to(logits) * self.residual(out)
        return logits.logsumexp(1) - virtual_logit


def _default_dimensions(size: int) -> int:
    """Return how many dimensions the authors' code takes for features of `size` dimensions."""
    if size >= 2048:
        return 1000
    if size >= 768:
        return 512
    return size // 2
