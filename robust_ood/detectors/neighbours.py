"""The distance to the k-th nearest in-distribution feature."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import Sample
from robust_ood.detectors.neighbour_index import IndexKind, NeighbourIndex, require_kind
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network

# How many columns a group has when the smallest values of a row are looked for.
_GROUP_SIZE = 8
# How many distances are held at a time. It bounds their memory, which is reused for all chunks of
# images because fresh pages cost more.
_ENTRIES = 1 << 23
_RECALL_SAMPLE = 256
_INDEXES: WeakKeyDictionary[KNN, tuple[Tensor, NeighbourIndex]] = WeakKeyDictionary()
"""By detector, its bank and the index over it. Not attributes: copies and states need none of it,
because an index follows from its bank."""


class KNN(OutputsDetector):
    """Minus the distance to the k-th nearest of the training images' features, in [-2, 0].

    Features are penultimate ones of unit length. Source: Sun et al. 2022, Eq. 3; k = 50 for
    CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet. The surrogate is minus the squared distance,
    whose gradient is finite where an image is in the bank.

    Args:
        net: classifier.
        neighbours: k, >= 1.
        bank_size: how many features are kept: all of a smaller training set, otherwise a uniform
            sample of it (alpha in the paper), which does not depend on the images' order.
        normalize: scale features to unit length first, as the paper does.
        index: how neighbours are searched. "exact": by products of matrices, on the network's
            device. "faiss-flat" and "faiss-ivf": by faiss, on the CPU (the extra `neighbours`). The
            first is exact, too. The second looks into some lists of similar features; `recall`
            says which share of the neighbours it finds, and an image whose lists hold fewer than k
            features is searched exactly. Attacks search again at each step by the same index.
        probes: how many lists "faiss-ivf" looks into, >= 1.
    """

    needs = "features"

    @typed
    def __init__(
        self,
        net: Network,
        neighbours: int = 50,
        bank_size: int = 50_000,
        *,
        normalize: bool = True,
        index: IndexKind = "exact",
        probes: int = 32,
    ) -> None:
        super().__init__(net)
        counts = {"neighbours": neighbours, "bank_size": bank_size, "probes": probes}
        for field, number in counts.items():
            if isinstance(number, bool) or not isinstance(number, int):
                raise UserError(f"{field}: {number!r} is not a whole number")
        if not 1 <= neighbours <= bank_size:
            raise UserError(f"neighbours: expected 1..{bank_size} (bank_size), got {neighbours}")
        self.neighbours = neighbours
        self.bank_size = bank_size
        if probes < 1:
            raise UserError(f"probes: expected at least 1, got {probes}")
        require_kind(index)
        self.normalize = normalize
        self.index = index
        self.probes = probes
        self.declare("bank")

    def learn(self) -> Rounds:
        """Keep the features of the images, or of a sample of them, by one pass."""
        sample = Sample(self.bank_size)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return self._prepared(seen.out), image_keys(seen.images)

        yield [self.reading(sample, read)]
        self.require_enough(len(sample.rows))
        self.keep(bank=sample.rows)

    def require_enough(self, images: int) -> None:
        """Raise `UserError` where there are fewer images than neighbours."""
        if images < self.neighbours:
            raise UserError(
                f"neighbours: expected at most the number of the loader's images "
                f"({images}), got {self.neighbours}"
            )

    def score(self, out: Outputs) -> Tensor:
        """Return minus the distance to the k-th neighbour."""
        features = self._prepared(out)
        distances: Tensor = torch.linalg.vector_norm(features - self._kth_nearest(features), dim=1)
        return -distances

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return minus the squared distance to the k-th neighbour."""
        features = self._prepared(out)
        return -(features - self._kth_nearest(features)).square().sum(1)

    def attack_surface(self) -> AttackSurface:
        """Return the squared distance, in float32.

        Small differences decide which row of the bank is the k-th nearest, and so the gradient.
        """
        return AttackSurface((self.surrogate,), exact=True, needs_float32=True)

    @torch.no_grad()
    def recall(self, count: int = _RECALL_SAMPLE) -> float:
        """Return the share of the `neighbours` nearest features that the index finds, in [0, 1].

        It is measured on means of two features of the bank, which are not in it themselves.

        Args:
            count: how many such features are searched for by the index and exactly, >= 1.
        """
        bank = self.learned("bank")
        count = min(count, len(bank))
        places = torch.linspace(0, len(bank) - 1, count, device=bank.device).long()
        queries = (bank[places] + bank[places.flip(0).roll(1)]) / 2
        if self.normalize:
            queries = F.normalize(queries, dim=1)
        if self.index == "exact":
            return 1.0
        found = self._faiss_index(bank).nearest(queries, self.neighbours)  # (count, k)
        hits = 0
        for query, rows in zip(queries, found, strict=True):
            distances = torch.linalg.vector_norm(bank - query, dim=1)
            farthest = distances.topk(self.neighbours, largest=False).values[-1]
            # By distance, because rows at the same distance may stand for each other.
            near = distances[rows[rows >= 0]] <= farthest * (1 + 1e-5) + 1e-6
            hits += int(near.sum())
        return hits / (count * self.neighbours)

    def _prepared(self, out: Outputs) -> Tensor:
        """Return the features `(N, D)` that are compared."""
        features = losses.wide(out.features)
        if self.normalize:
            return F.normalize(features, dim=1)
        return features

    def _kth_nearest(self, features: Tensor) -> Tensor:
        """Return the bank's k-th nearest feature `(N, D)` to each of `(N, D)`, a constant."""
        bank = self.learned("bank")
        if self.index == "exact" or torch.compiler.is_compiling():
            return self._exact_kth_nearest(features, bank)
        with torch.no_grad():
            return self._indexed_kth_nearest(features, bank)

    def _indexed_kth_nearest(self, features: Tensor, bank: Tensor) -> Tensor:
        """Return the k-th nearest feature `(N, D)` of those that faiss finds."""
        rows = self._faiss_index(bank).nearest(features, self.neighbours)[:, -1]  # (N,)
        nearest = bank.to(features)[rows.clamp_min(0)]
        missing = rows < 0
        if bool(missing.any()):
            nearest[missing] = self._exact_kth_nearest(features[missing], bank)
        return nearest

    def _faiss_index(self, bank: Tensor) -> NeighbourIndex:
        """Return the index over the bank, built where the bank is another one than before."""
        known = _INDEXES.get(self)
        if known is None or known[0] is not bank:
            known = (bank, NeighbourIndex(self.index, bank, self.probes))
            _INDEXES[self] = known
        return known[1]

    def _exact_kth_nearest(self, features: Tensor, bank: Tensor) -> Tensor:
        """Return the k-th nearest feature `(N, D)` by comparing with all."""
        with torch.no_grad():
            bank = bank.to(features)
            squared_norms = bank.square().sum(1)
            if torch.compiler.is_compiling():  # an exported graph has no memory to overwrite
                return bank[self._kth_nearest_rows(features, bank, squared_norms, None)]
            chunk_size = max(_ENTRIES // len(bank), 1)
            # One chunk's distances, overwritten by the next.
            buffer = features.new_empty(min(chunk_size, len(features)), len(bank))
            rows = []
            for chunk in torch.split(features, chunk_size):
                held = buffer[: len(chunk)]
                rows.append(self._kth_nearest_rows(chunk, bank, squared_norms, held))
        return bank[torch.cat(rows)]

    def _kth_nearest_rows(
        self, features: Tensor, bank: Tensor, squared_norms: Tensor, held: Tensor | None
    ) -> Tensor:
        """Return the row `(n,)` of the bank that is the k-th nearest to each feature.

        Args:
            features: `(n, D)`.
            bank: `(B, D)`.
            squared_norms: of the bank's rows, `(B,)`.
            held: memory for the distances, `(n, B)`, which is overwritten; None for new memory.
        """
        # Squared distances minus the feature's own squared norm, which does not change their order.
        distances = torch.addmm(squared_norms, features, bank.T, alpha=-2, out=held)  # (n, B)
        nearest, rows = smallest(distances, self.neighbours)  # (n, k)
        farthest = nearest.argmax(1, keepdim=True)
        return rows.gather(1, farthest)[:, 0]


def smallest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` smallest values of each row and their columns, `(N, count)`, unordered.

    The columns are divided into groups. The smallest values are in the `count` groups whose minima
    are smallest: fewer than `count` values are smaller than one of them, and each group with a
    smaller minimum holds such a value. Minima are much cheaper than a selection, so the groups are
    found by the same function.

    Args:
        values: `(N, columns)`.
        count: at most the number of columns.
    """
    rows, columns = values.shape
    groups = columns // _GROUP_SIZE
    if groups < 4 * count:  # too few groups for their minima to save time
        selected = values.topk(count, dim=1, largest=False, sorted=False)
        return selected.values, selected.indices
    grouped_columns = groups * _GROUP_SIZE
    # Column c is in group c % groups.
    grouped = values[:, :grouped_columns].reshape(rows, _GROUP_SIZE, groups)
    _, chosen_groups = smallest(grouped.amin(1), count)  # (N, count)
    offsets = torch.arange(_GROUP_SIZE, device=values.device) * groups
    candidates = (chosen_groups[:, :, None] + offsets).flatten(1)  # (N, count * group size)
    # Columns beyond the last full group are candidates, too.
    ungrouped = torch.arange(grouped_columns, columns, device=values.device).expand(rows, -1)
    candidates = torch.cat([candidates, ungrouped], dim=1)
    selected = values.gather(1, candidates).topk(count, dim=1, largest=False, sorted=False)
    return selected.values, candidates.gather(1, selected.indices)
