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
_SIGN_BIT = 1 << 31


def _to_keys(values: Tensor) -> Tensor:
    """Map float32 values to integers 0..2^32-1 in the same order, through their bit patterns."""
    bits = (values + 0.0).view(torch.int32).long()  # adding zero makes -0 the same as 0
    # The bit patterns of negative floats, read as integers, are in descending order.
    return torch.where(bits >= 0, bits + _SIGN_BIT, -1 - bits)


def _to_value(key: int) -> float:
    bits = -1 - key
    if key >= _SIGN_BIT:
        bits = key - _SIGN_BIT
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


class _Histogram(Statistic):
    """Counts of the keys' upper 16 bits, or of the lower 16 bits of keys with certain upper ones.

    Args:
        upper: the upper bits of the keys whose lower bits are counted; None to count upper bits.
    """

    def __init__(self, upper: int | None = None) -> None:
        self.upper = upper
        self.counts = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, *values: Tensor) -> None:
        """See values of any shape."""
        keys = _to_keys(values[0].detach().float().flatten())
        bins = keys >> _BITS
        if self.upper is not None:
            bins = keys[bins == self.upper] & (_BINS - 1)
        self.counts += torch.bincount(bins, minlength=_BINS).cpu()

    def reduce(self) -> None:
        """Add up the counts."""
        self.counts = total(self.counts)

    def find(self, rank: int) -> tuple[int, int]:
        """Return the bin of the value of that rank (from 0), and the value's rank in the bin."""
        cumulative = self.counts.cumsum(0)
        index = int(torch.searchsorted(cumulative, rank, right=True))
        before = 0
        if index:
            before = int(cumulative[index - 1])
        return index, rank - before


class Quantile:
    """A quantile of all values of a stream, interpolated linearly as `numpy.quantile` does.

    `rounds` yields the two passes of the fit: counts of the values by the upper half of their bits,
    then by the lower half within the bins that hold the two order statistics between which the
    quantile is. Exact for float32 values.

    Args:
        share: in [0, 1].
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.value = float("nan")

    def rounds(self, reading: Callable[[Statistic], Pass]) -> Rounds:
        """Yield passes; after them, `value` holds the quantile.

        Args:
            reading: makes a pass over the values from a statistic of them.
        """
        coarse = _Histogram()
        yield [reading(coarse)]
        last = int(coarse.counts.sum()) - 1
        position = self.share * last
        rank = int(position)
        upper_low, rank_low = coarse.find(rank)
        upper_high, rank_high = coarse.find(min(rank + 1, last))
        # One histogram where both order statistics are in the same bin.
        fine = {upper: _Histogram(upper) for upper in (upper_low, upper_high)}
        yield [reading(histogram) for histogram in fine.values()]
        low = _exact_value(fine[upper_low], rank_low)
        high = _exact_value(fine[upper_high], rank_high)
        self.value = low + (high - low) * (position - rank)


def _exact_value(histogram: _Histogram, rank: int) -> float:
    """Return the value of a rank among those whose lower bits are counted."""
    assert histogram.upper is not None
    lower, _ = histogram.find(rank)
    return _to_value((histogram.upper << _BITS) + lower)


def quantile_of(values: Tensor, share: float) -> Tensor:
    """Return a quantile, a scalar, of values `(N,)` that are at hand, interpolated linearly.

    `torch.quantile` refuses more than 16 million values.
    """
    ordered = values.sort().values
    last = len(ordered) - 1
    position = share * last
    low = ordered[int(position)]
    high = ordered[min(int(position) + 1, last)]
    quantile: Tensor = low + (high - low) * (position % 1)
    return quantile
