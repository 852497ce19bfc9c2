"""Normalisation as a network's first layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
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

    @typed
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not mean or len(mean) != len(std):
            raise UserError(
                f"mean and std: {len(mean)} and {len(std)} values; expected one per channel"
            )
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise UserError(
                f"mean and std: expected finite values, std > 0, got {tuple(mean)} and {tuple(std)}"
            )
        dtype = torch.get_default_dtype()  # whole numbers would give integer tensors
        self.register_buffer("mean", torch.tensor(mean, dtype=dtype).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images."""
        # Images of one channel would broadcast to three, and bytes stay 0..255, without an error.
        channels = self.mean.shape[1]
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise UserError(
                f"images: expected float images (N, {channels}, H, W) in [0, 1], got "
                f"{tuple(images.shape)} of {images.dtype}"
            )
        return (images - self.mean) / self.std


def for_channels(
    channels: int | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the normalisation of images of so many channels.

    Args:
        channels: of the images; None for as many as `mean` has values.
        mean, std: as in `Normalize`. CIFAR's, the default of our networks, stand for the average of
            their three values where there are not three channels.

    Raises:
        UserError: no whole number >= 1, or another one than `mean` and `std` have values.
    """
    if channels is None:
        return mean, std
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise UserError(f"channels: expected a whole number >= 1, got {channels!r}")
    is_default = tuple(mean) == CIFAR_MEAN and tuple(std) == CIFAR_STD
    if is_default and channels != len(CIFAR_MEAN):
        return (sum(CIFAR_MEAN) / 3,) * channels, (sum(CIFAR_STD) / 3,) * channels
    if len(mean) != channels:
        raise UserError(
            f"mean and std: {len(mean)} and {len(std)} values; expected {channels}, one per channel"
        )
    return mean, std


def resized(images: Tensor, size: int) -> Tensor:
    """Return images `(N, C, size, size)`: bilinear and antialiased; of that size, as they are."""
    shape = (size, size)
    if images.shape[-2:] == shape:
        return images
    return F.interpolate(images, shape, mode="bilinear", antialias=True, align_corners=False)
