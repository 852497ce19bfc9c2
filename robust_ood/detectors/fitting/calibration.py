"""The temperature that calibrates a softmax, from a stream and in constant memory.

The negative log-likelihood is convex in the inverse temperature b, with slope `mean over images of
E_b[z] - z_y`, where E_b is the mean logit under `softmax(b z)`. The slope's root is bracketed on a
grid of b, then on a finer one inside the bracket.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust_ood.detectors.fitting.processes import total
from robust_ood.detectors.fitting.statistics import Statistic, double
from robust_ood.errors import UserError

COLDEST = 1e-3
HOTTEST = 1e3
_POINTS = 65


class CalibrationSlopes(Statistic):
    """Sums of the slopes of the negative log-likelihood at a grid of inverse temperatures."""

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse
        self.slopes = torch.zeros_like(inverse)

    @classmethod
    def coarse(cls) -> CalibrationSlopes:
        """Return the grid over all temperatures that are searched."""
        lowest = -math.log10(HOTTEST)
        highest = -math.log10(COLDEST)
        return cls(torch.logspace(lowest, highest, _POINTS, dtype=torch.float64))

    def add(self, *values: Tensor) -> None:
        """See logits `(N, K)` and classes `(N,)`."""
        logits = double(values[0]).cpu()
        classes = values[1].cpu()
        class_logits = logits.gather(1, classes[:, None])[:, 0]  # z_y, (N,)
        # One point at a time: all at once would need 65 times the logits' memory.
        for point, inverse in enumerate(self.inverse.tolist()):
            mean_logits = ((inverse * logits).softmax(1) * logits).sum(1)  # E_b[z], (N,)
            self.slopes[point] += (mean_logits - class_logits).sum()

    def reduce(self) -> None:
        """Add up the slopes."""
        self.slopes = total(self.slopes)

    def refined(self) -> CalibrationSlopes:
        """Return a finer grid between the two points that bracket the root."""
        low, high = self.bracket()
        lowest = float(self.inverse[low])
        highest = float(self.inverse[high])
        return CalibrationSlopes(torch.linspace(lowest, highest, _POINTS).double())

    def bracket(self) -> tuple[int, int]:
        """Return the indices of the two neighbouring points around the root."""
        rising = (self.slopes >= 0).nonzero().flatten().tolist()  # slopes grow with b
        if not rising or rising[0] == 0:
            raise UserError(
                "temperature: the likelihood has no maximum between "
                f"{COLDEST:g} and {HOTTEST:g} (are all images classified correctly?); "
                "fit it on more labelled images, which the network was not trained on"
            )
        return rising[0] - 1, rising[0]


def best_temperature(slopes: CalibrationSlopes) -> float:
    """Return the temperature where the linearly interpolated slope is zero."""
    low, high = slopes.bracket()
    slope_low = float(slopes.slopes[low])
    slope_high = float(slopes.slopes[high])
    # Interpolated in the inverse temperature, in which the slope is monotonic.
    share = -slope_low / (slope_high - slope_low)
    inverse = float(slopes.inverse[low]) * (1 - share) + float(slopes.inverse[high]) * share
    return 1 / inverse
