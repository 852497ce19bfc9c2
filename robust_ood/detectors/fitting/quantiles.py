"""Exact quantiles of a stream, in two passes and constant memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from robust_ood.detectors.fitting.passes import Pass, Rounds
from robust_ood.detectors.fitting.processes import total
from robust_ood.detectors.fitting.statistics import Statistic

_BITS = 16
_BINS = 1 << _BITS


def _keys(values: Tensor) -> Tensor:
    """Map float32 values to integers 0..2^32-1 in the same order, through their bit patterns."""
    bits = (values + 0.0).view(torch.int32).long()  # adding zero makes -0 the same as 0
    return torch.where(bits >= 0, bits + (1 << 31), -1 - bits)


def _value(key: int) -> float:
    bits = key - (1 << 31) if key >= 1 << 31 else -1 - key
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


class _Histogram(Statistic):
    """Counts of the upper 16 bits of the keys, or of the lower ones among keys with given upper
    bits.
    """

    def __init__(self, upper: int | None = None) -> None:
        self.upper, self.counts = upper, torch.zeros(_BINS, dtype=torch.int64)

    def add(self, *values: Tensor) -> None:
        """See values of any shape."""
        keys = _keys(values[0].detach().float().flatten())
        chosen = (
            keys >> _BITS if self.upper is None else keys[keys >> _BITS == self.upper] & (_BINS - 1)
        )
        self.counts += torch.bincount(chosen, minlength=_BINS).cpu()

    def reduce(self) -> None:
        """Add up the counts."""
        self.counts = total(self.counts)

    def find(self, rank: int) -> tuple[int, int]:
        """Return the bin of the value of that rank, and its rank within the bin."""
        sums = self.counts.cumsum(0)
        place = int(torch.searchsorted(sums, rank, right=True))
        return place, rank - (int(sums[place - 1]) if place else 0)


class Quantile:
    """A quantile of all values of a stream, interpolated linearly between order statistics, as
    `numpy.quantile` does.

    `rounds` yields the two passes of the fit: counts of the values by the upper half of their bits,
    then by the lower half within the bins that hold the two order statistics. Exact for float32
    values.

    Args:
        share: in [0, 1].
    """

    def __init__(self, share: float) -> None:
        self.share, self.value = share, float("nan")

    def rounds(self, reading: Callable[[Statistic], Pass]) -> Rounds:
        """Yield passes, each made by `reading` around a statistic of the values; then `value` holds
        the quantile.
        """
        coarse = _Histogram()
        yield [reading(coarse)]
        place = self.share * (int(coarse.counts.sum()) - 1)
        below = int(place)
        found = [
            coarse.find(rank) for rank in (below, min(below + 1, int(coarse.counts.sum()) - 1))
        ]
        fine = {upper: _Histogram(upper) for upper, _ in found}
        yield [reading(histogram) for histogram in fine.values()]
        low, high = (_value((upper << _BITS) + fine[upper].find(rank)[0]) for upper, rank in found)
        self.value = low + (high - low) * (place - below)
