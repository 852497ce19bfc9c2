"""An interval for every number of a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_ood.regions import Fraction


@dataclass(frozen=True)
class Interval:
    """A lower and an upper bound of every number of a tensor.

    Args:
        lower: of any shape.
        upper: of the same shape, nowhere below `lower`.
    """

    lower: Tensor
    upper: Tensor

    @property
    def centre(self) -> Tensor:
        """The middle of each interval, of the tensors' shape, any shape; exact where it is a point.

        Every bound of an affine layer is taken around it.
        """
        return (self.lower + self.upper) / 2

    @property
    def half_width(self) -> Tensor:
        """Half the width of each interval, of the tensors' shape, any shape, >= 0."""
        return (self.upper - self.lower) / 2


def around(centre: Tensor, half_width: Tensor) -> Interval:
    """Return the interval of a centre and half a width, both of one shape, any shape."""
    return Interval(centre - half_width, centre + half_width)


def pixel_interval(images: Tensor, radius: float | Fraction) -> Interval:
    """Return the Linf ball around images `(N, C, H, W)`, cut with the range of pixels, [0, 1]."""
    # Copies, because a network's first layer may work in place.
    lower = (images - float(radius)).clamp(0, 1)
    upper = (images + float(radius)).clamp(0, 1)
    return Interval(lower.contiguous(), upper.contiguous())


def hull(*corners: Tensor) -> Interval:
    """Return the smallest interval that holds all given tensors of one shape, any shape."""
    stacked = torch.stack(corners)
    return Interval(stacked.amin(0), stacked.amax(0))
