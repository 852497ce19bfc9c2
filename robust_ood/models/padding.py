"""Convolutions that pad as TensorFlow does."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["symmetric", "same"]
"""How a 3 x 3 convolution of stride 2 pads: one pixel on each side, or one at right and bottom."""


class SameConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 2 that pads right and bottom only, as TensorFlow's `SAME`.

    Source: the code of Gowal et al. 2020, whose networks came from TensorFlow. On images of even
    sides, padding one pixel all around would read other pixels.

    Args:
        inputs, outputs: channels.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, stride=2, padding=0, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in torch
        """Return maps `(N, outputs, H / 2, W / 2)` of maps `(N, inputs, H, W)`."""
        return super().forward(F.pad(input, (0, 1, 0, 1)))


def convolution(inputs: int, outputs: int, stride: int, padding: Padding) -> nn.Conv2d:
    """Return a 3 x 3 convolution without biases, of stride 1 or 2."""
    if stride == 2 and padding == "same":
        return SameConv2d(inputs, outputs)
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
