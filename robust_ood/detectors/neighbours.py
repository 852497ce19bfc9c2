"""The distance to the k-th nearest in-distribution feature."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Rounds
from robust_ood.detectors.fitting.statistics import Sample
from robust_ood.errors import UserError
from robust_ood.models import Outputs

_GROUP = 8
_ENTRIES = (
    1 << 23
)  # distances held at a time: bounds their memory, which is reused because fresh pages cost more


class KNN(OutputsDetector):
    """Minus the distance of the unit-length penultimate feature to the k-th nearest one of the
    bank, in [-2, 0].

    Source: Sun et al. 2022, Eq. 3; K = 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet. The
    surrogate is minus the squared distance, whose gradient is finite where an image is in the bank.

    Args:
        net: classifier.
        neighbours: k, >= 1.
        bank_size: how many features are kept: all of a smaller training set, otherwise a uniform
            sample of it (alpha in the paper), the same in whatever order the images come.
        normalize: bring features to unit length first, as the paper does.
    """

    def __init__(
        self,
        net: nn.Module,
        neighbours: int = 50,
        bank_size: int = 50_000,
        *,
        normalize: bool = True,
    ) -> None:
        super().__init__(net)
        for field, number in (("neighbours", neighbours), ("bank_size", bank_size)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise UserError(f"{field}: {number!r} is not a whole number")
        if not 1 <= neighbours <= bank_size:
            raise UserError(f"neighbours: {neighbours} is not in 1..bank_size ({bank_size})")
        self.neighbours, self.bank_size, self.normalize = neighbours, bank_size, normalize
        self.declare("bank")

    def learn(self) -> Rounds:
        """Keep the features of the images, or of a sample of them, by one pass."""
        sample = Sample(self.bank_size)
        yield [
            self.reading(sample, lambda seen: (self._prepare(seen.out), image_keys(seen.images)))
        ]
        if len(sample.rows) < self.neighbours:
            raise UserError(
                f"neighbours: {self.neighbours} is more than the {len(sample.rows)} images of the loader"
            )
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

    def attack_surface(self) -> AttackSurface:
        """Return the squared distance, in float32.

        Which row is the k-th nearest, and with it the gradient, turns on small differences.
        """
        return AttackSurface((self.surrogate,), exact=True, needs_float32=True)

    def _prepare(self, out: Outputs) -> Tensor:
        features = losses.wide(out.features)
        return F.normalize(features, dim=1) if self.normalize else features

    def _neighbour(self, out: Outputs) -> tuple[Tensor, Tensor]:
        """Return features `(N, D)` and the bank's k-th nearest to each `(N, D)`, a constant."""
        features, bank = self._prepare(out), self.learned("bank")
        with torch.no_grad():
            rows = max(_ENTRIES // len(bank), 1)
            held = features.new_empty(min(rows, len(features)), len(bank))
            bank = bank.to(features)
            squares = bank.square().sum(1)
            places = [
                self._place(part, bank, squares, held[: len(part)])
                for part in torch.split(features, rows)
            ]
        return features, bank[torch.cat(places)]

    def _place(self, features: Tensor, bank: Tensor, squares: Tensor, held: Tensor) -> Tensor:
        """Return the row `(N,)` of each feature's k-th nearest in the bank; `held` is written
        over.
        """
        # Squared distances up to the feature's own length, which does not change their order.
        distances = torch.addmm(
            squares, features, bank.T, alpha=-2, out=held
        )  # (N, rows of the bank)
        near, places = smallest(distances, self.neighbours)
        return places.gather(1, near.argmax(1, keepdim=True))[:, 0]


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` smallest values of each row and their columns, `(N, count)` each, in any
    order.

    Those are in the groups of columns whose minima are smallest: an element is preceded by fewer
    than `count` others, and each group that precedes its own holds one of them. Minima are much
    cheaper than selections, so the groups are found in the same way.
    """
    groups = values.shape[1] // _GROUP
    if groups < 4 * count:
        found = values.topk(count, dim=1, largest=False, sorted=False)
        return found.values, found.indices
    grouped = values[:, : _GROUP * groups].reshape(
        len(values), _GROUP, groups
    )  # column c is in group c % groups
    _, chosen = smallest(grouped.amin(1), count)  # (N, count)
    steps = torch.arange(_GROUP, device=values.device) * groups
    rest = torch.arange(_GROUP * groups, values.shape[1], device=values.device).expand(
        len(values), -1
    )
    columns = torch.cat([(chosen[:, :, None] + steps).flatten(1), rest], dim=1)
    found = values.gather(1, columns).topk(count, dim=1, largest=False, sorted=False)
    return found.values, columns.gather(1, found.indices)
