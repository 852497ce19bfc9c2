"""Normalisation as a network's first layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust_ood.errors import UserError

CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)


class Normalize(nn.Module):
    """`(images - mean) / std`, channel by channel; images `(N, C, H, W)` in [0, 1].

    Args:
        mean: one value a channel, in pixel fractions.
        std: one value a channel, in pixel fractions, > 0.

    Raises:
        UserError: `mean` and `std` of different lengths, values that are not finite, `std` <= 0; in
            `forward`, images of another rank, channel count or of integers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not mean or len(mean) != len(std):
            raise UserError(
                f"mean and std: {len(mean)} and {len(std)} values; give one of each a channel"
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise UserError(
                f"mean and std: {tuple(mean)} and {tuple(std)}; accepted: finite values, std > 0"
            )
        dtype = torch.get_default_dtype()  # whole numbers, too, would be kept as such
        self.register_buffer("mean", torch.tensor(mean, dtype=dtype).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images."""
        # One-channel images would broadcast to three channels, and bytes to 0..255, without a word.
        channels = self.mean.shape[1]
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            given = f"{tuple(images.shape)} of {images.dtype}"
            raise UserError(
                f"images: {given}; accepted: float images (N, {channels}, H, W) in [0, 1]"
            )
        return (images - self.mean) / self.std
