"""The order in which auxiliary outliers are trained on, a pure function of the seed."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood.data.outlier_mixture import MixedSet
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError
from robust_ood.randomness import generator

BLOCK = 10_000
"""Places of the stream in which each source has exactly its share, as whole numbers."""


class OutlierStream:
    """An endless stream of shuffled passes over outliers, of which all are used equally often.

    Several sources have a stream each. Every 10,000 places of the stream, in shuffled order, belong
    to the sources in proportion to their weights, so that no state is needed to know which image
    stands at a place.

    Args:
        outliers: the set; a `MixedSet` for several sources.
        seed: the run's seed.
    """

    def __init__(self, outliers: ImageSet, seed: int) -> None:
        self.seed = seed
        self.lengths: tuple[int, ...] = (len(outliers),)
        weights: tuple[float, ...] = (1.0,)
        if isinstance(outliers, MixedSet):
            self.lengths = outliers.lengths
            weights = outliers.weights
        self.counts = _shared_out(BLOCK, weights)
        self._block: tuple[int, Tensor] | None = None
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def indices(self, places: Tensor) -> Tensor:
        """Return which outliers stand at consecutive places `(n,)` of the stream, `(n,)`."""
        if len(self.lengths) == 1:
            return self._of_source(0, places)
        chosen = torch.empty_like(places)
        blocks = places // BLOCK
        for block in range(int(blocks[0]), int(blocks[-1]) + 1):
            here = blocks == block
            sources = self._sources(block)  # (BLOCK,)
            offsets = places[here] % BLOCK
            found = torch.empty_like(offsets)
            first = 0
            for source, (length, count) in enumerate(zip(self.lengths, self.counts, strict=True)):
                is_source = sources == source
                before = is_source.cumsum(0) - 1  # of this source, up to each place of the block
                mine = is_source[offsets]
                turns = block * count + before[offsets[mine]]
                found[mine] = first + self._of_source(source, turns)
                first += length
            chosen[here] = found
        return chosen

    def pool(self, count: int, draws: torch.Generator) -> Tensor:
        """Return `count` different outliers, or as many as there are, in the sources' shares."""
        if len(self.lengths) == 1:
            return torch.randperm(self.lengths[0], generator=draws)[:count]
        pieces = []
        first = 0
        for length, share in zip(self.lengths, self.counts, strict=True):
            wanted = -(-count * share // BLOCK)  # rounded up
            pieces.append(first + torch.randperm(length, generator=draws)[:wanted])
            first += length
        return torch.cat(pieces)

    def _of_source(self, source: int, turns: Tensor) -> Tensor:
        """Return the images at turns `(n,)`, rising, of a source's own stream."""
        if not len(turns):
            return turns
        count = self.lengths[source]
        passes = turns // count
        pieces = []
        for shuffle in range(int(passes[0]), int(passes[-1]) + 1):
            order = self._order(source, shuffle)
            pieces.append(order[turns[passes == shuffle] % count])
        return torch.cat(pieces)

    def _order(self, source: int, shuffle: int) -> Tensor:
        """Return the order of a source's outliers in a pass; the latest one is kept."""
        kept = self._orders.get(source)
        if kept is not None and kept[0] == shuffle:
            return kept[1]
        keys = (shuffle,) if len(self.lengths) == 1 else (shuffle, source)
        draws = generator(self.seed, "outlier order", *keys)
        order = torch.randperm(self.lengths[source], generator=draws)
        self._orders[source] = (shuffle, order)
        return order

    def _sources(self, block: int) -> Tensor:
        """Return which source each place of a block belongs to, `(BLOCK,)`."""
        if self._block is None or self._block[0] != block:
            numbers = torch.arange(len(self.counts))
            sources = numbers.repeat_interleave(torch.tensor(self.counts))
            draws = generator(self.seed, "outlier sources", block)
            self._block = (block, sources[torch.randperm(BLOCK, generator=draws)])
        return self._block[1]


def _shared_out(total: int, weights: tuple[float, ...]) -> list[int]:
    """Return whole numbers in proportion to weights, of the given sum (largest remainders)."""
    whole = sum(weights)
    exact = [total * weight / whole for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    for place, count in enumerate(counts):
        if not count:
            raise UserError(
                f"data.outliers[{place}].weight: {weights[place]:g} of {whole:g} is less than one "
                f"outlier in {total}; leave that set out, or give it more"
            )
    return counts
