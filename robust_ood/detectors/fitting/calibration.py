"""The temperature that calibrates a softmax, from a stream and in constant memory.

The negative log-likelihood is convex in the inverse temperature b, with slope `mean over images of
E_b[z] - z_y`, where E_b is the mean logit under `softmax(b z)`. Its root is bracketed on a grid of
b, then on a finer one inside the bracket.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from robust_ood.detectors.fitting.processes import total
from robust_ood.detectors.fitting.statistics import Statistic, double
from robust_ood.errors import UserError

COLDEST, HOTTEST = 1e-3, 1e3
_POINTS = 65


class CalibrationSlopes(Statistic):
    """Sums of the slopes of the negative log-likelihood at a grid of inverse temperatures."""

    def __init__(self, inverse: Tensor) -> None:
        self.inverse, self.slopes = inverse, torch.zeros_like(inverse)

    @classmethod
    def coarse(cls) -> CalibrationSlopes:
        """Return the grid over all temperatures that are searched."""
        return cls(
            torch.logspace(-math.log10(HOTTEST), -math.log10(COLDEST), _POINTS, dtype=torch.float64)
        )

    def add(self, *values: Tensor) -> None:
        """See logits `(N, K)` and classes `(N,)`."""
        logits = double(values[0]).cpu()
        own = logits.gather(1, values[1].cpu()[:, None])[:, 0]
        for place, inverse in enumerate(self.inverse.tolist()):
            expected = ((inverse * logits).softmax(1) * logits).sum(1)
            self.slopes[place] += (expected - own).sum()

    def reduce(self) -> None:
        """Add up the slopes."""
        self.slopes = total(self.slopes)

    def refined(self) -> CalibrationSlopes:
        """Return a finer grid between the two points that bracket the root."""
        low, high = self._bracket()
        return CalibrationSlopes(
            torch.linspace(float(self.inverse[low]), float(self.inverse[high]), _POINTS).double()
        )

    def _bracket(self) -> tuple[int, int]:
        rising = (self.slopes >= 0).nonzero().flatten().tolist()  # slopes grow with b
        if not rising or rising[0] == 0:
            raise UserError(
                f"temperature: no maximum of the likelihood between {COLDEST:g} and {HOTTEST:g} (are all images "
                "classified correctly?); fit it on more labelled images, which the network was not trained on"
            )
        return rising[0] - 1, rising[0]


def best_temperature(slopes: CalibrationSlopes) -> float:
    """Return the temperature where the slope is zero, by linear interpolation between the grid's
    points.
    """
    low, high = slopes._bracket()
    at_low, at_high = float(slopes.slopes[low]), float(slopes.slopes[high])
    share = -at_low / (at_high - at_low)
    inverse = float(slopes.inverse[low]) * (1 - share) + float(slopes.inverse[high]) * share
    return 1 / inverse
