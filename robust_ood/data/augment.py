"""Batched augmentation on whatever device the batch is on."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Return each image cropped at a random place after zero padding, and mirrored half the time.

    Source: the training augmentation of all the CIFAR recipes (He et al. 2016).

    Args:
        images: `(N, C, H, W)`, any dtype, on any device; `uint8` in channels-last memory is
            fastest.
        generator: source of the draws; one on the CPU gives the same on every device, without
            waiting for the device.
        padding: pixels added on each side before the crop.
    """
    count, _, height, width = images.shape
    if not count:
        return images
    down, right, flip = _draw(count, generator, padding)  # (N, 1) each
    padded, image = _pad(images, flip.flatten(), padding)
    left = torch.where(flip, 2 * padding - right, right)
    # Every row of every result is one contiguous piece of `padded`. So one `index_select` of such
    # pieces crops all images: several times faster than indexing pixels.
    _, padded_height, padded_width, channels = padded.shape
    rows = image[:, None] * padded_height + down + torch.arange(height)  # (N, H)
    starts = rows * padded_width + left
    count_of_starts = (len(padded) * padded_height - 1) * padded_width + padded_width - width + 1
    pieces = padded.as_strided((count_of_starts, width * channels), (channels, 1))
    cropped = pieces.index_select(0, starts.flatten().to(images.device))
    return cropped.view(count, height, width, channels).permute(0, 3, 1, 2)


def _draw(count: int, generator: torch.Generator, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the offsets of the crops downwards and to the right, and which images to mirror."""
    device = generator.device
    shape = (2, count, 1)
    offsets = torch.randint(0, 2 * padding + 1, shape, generator=generator, device=device).cpu()
    flip = torch.rand((count, 1), generator=generator, device=device) < 0.5
    return offsets[0], offsets[1], flip.cpu()


def _pad(images: Tensor, flip: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """Return the padded images followed by the padded mirror images of those to flip,
    `(M, H, W, C)`, and which of them each image is cropped from, `(N,)`.
    """
    count, channels, height, width = images.shape
    flipped = flip.nonzero().flatten()
    image = torch.arange(count)
    image[flipped] = torch.arange(count, count + len(flipped))
    shape = (count + len(flipped), height + 2 * padding, width + 2 * padding, channels)
    padded = images.new_zeros(shape)
    inside = padded[:, padding : padding + height, padding : padding + width]
    rows = images.permute(0, 2, 3, 1)  # (N, H, W, C)
    inside[:count] = rows
    inside[count:] = rows.index_select(0, flipped.to(images.device)).flip(2)
    return padded, image
