"""The distance to the k-th nearest in-distribution feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fingerprints import fingerprints
from robust_ood.detectors.fitting import Rounds
from robust_ood.detectors.statistics import Sample
from robust_ood.errors import UserError
from robust_ood.models import Outputs

_GROUP = 16
_CHUNK = 16384  # bank rows compared at a time: bounds the memory of a batch's distances


class KNN(OutputsDetector):
    """Minus the distance of the unit-length penultimate feature to the k-th nearest one of the bank, in [-2, 0].

    Source: Sun et al. 2022, Eq. 3; K = 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet. The surrogate is minus
    the squared distance, whose gradient is finite where an image is in the bank.

    Args:
        net: classifier.
        neighbours: k, >= 1.
        bank_size: how many features are kept: all of a smaller training set, otherwise a uniform sample of it (alpha in
            the paper), the same in whatever order the images come.
        normalize: bring features to unit length first, as the paper does.
    """

    exact_surrogate = True

    def __init__(
        self, net: nn.Module, neighbours: int = 50, bank_size: int = 50_000, *, normalize: bool = True
    ) -> None:
        super().__init__(net)
        if not 1 <= neighbours <= bank_size:
            raise UserError(f"neighbours: {neighbours} is not in 1..bank_size ({bank_size})")
        self.neighbours, self.bank_size, self.normalize = neighbours, bank_size, normalize
        self.declare("bank")

    def learn(self) -> Rounds:
        """Keep the features of the images, or of a sample of them, by one pass."""
        sample = Sample(self.bank_size)
        yield [self.reading(sample, lambda seen: (self._prepare(seen.out), fingerprints(seen.images)))]
        if len(sample.rows) < self.neighbours:
            raise UserError(f"neighbours: {self.neighbours} is more than the {len(sample.rows)} images of the loader")
        self.keep(bank=sample.rows)

    def score(self, out: Outputs) -> Tensor:
        """Return minus the distance to the k-th neighbour."""
        features, neighbour = self._neighbour(out)
        distance: Tensor = torch.linalg.vector_norm(features - neighbour, dim=1)
        return -distance

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return minus the squared distance to the k-th neighbour."""
        features, neighbour = self._neighbour(out)
        return -(features - neighbour).square().sum(1)

    def _prepare(self, out: Outputs) -> Tensor:
        features = losses.wide(out.features)
        return F.normalize(features, dim=1) if self.normalize else features

    def _neighbour(self, out: Outputs) -> tuple[Tensor, Tensor]:
        """Return features `(N, D)` and the bank's k-th nearest to each `(N, D)`, a constant."""
        features, bank = self._prepare(out), self.learned("bank")
        with torch.no_grad():
            near = features.new_empty(len(features), 0)
            places = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
            for first in range(0, len(bank), _CHUNK):
                part = bank[first : first + _CHUNK].to(features)
                # Squared distances up to the feature's own length, which does not change their order.
                distances = torch.addmm(part.square().sum(1), features, part.T, alpha=-2)  # (N, chunk)
                values, found = smallest(distances, min(self.neighbours, len(part)))
                near, places = torch.cat([near, values], dim=1), torch.cat([places, found + first], dim=1)
                kept = near.topk(min(self.neighbours, near.shape[1]), dim=1, largest=False)
                near, places = kept.values, places.gather(1, kept.indices)
        return features, bank[places[:, -1]].to(features)


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` smallest values of each row and their columns, `(N, count)` each, in any order.

    Those are in the groups of columns whose minima are smallest: an element is preceded by fewer than `count` others,
    and each group that precedes its own holds one of them. Minima are much cheaper than selections.
    """
    groups = values.shape[1] // _GROUP
    if groups < 4 * count:
        found = values.topk(count, dim=1, largest=False, sorted=False)
        return found.values, found.indices
    grouped = values[:, : _GROUP * groups].reshape(len(values), _GROUP, groups)  # column c is in group c % groups
    chosen = grouped.amin(1).topk(count, dim=1, largest=False, sorted=False).indices  # (N, count)
    steps = torch.arange(_GROUP, device=values.device) * groups
    rest = torch.arange(_GROUP * groups, values.shape[1], device=values.device).expand(len(values), -1)
    columns = torch.cat([(chosen[:, :, None] + steps).flatten(1), rest], dim=1)
    found = values.gather(1, columns).topk(count, dim=1, largest=False, sorted=False)
    return found.values, columns.gather(1, found.indices)
