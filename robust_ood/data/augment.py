"""Batched augmentation on whatever device the batch is on."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Return each image cropped at a random place after zero padding, and mirrored with probability one half.

    Source: the training augmentation of all the CIFAR recipes (He et al. 2016).

    Args:
        images: `(N, C, H, W)`, any dtype; `uint8` in channels-last memory is fastest.
        generator: where the draws come from; on the images' device.
        padding: pixels added on each side before the crop.
    """
    count, channels, height, width = images.shape
    if not count:
        return images
    draw = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=generator.device)
    flip = torch.rand((count, 1), generator=generator, device=generator.device) < 0.5
    (down, right), flip = draw.to(images.device), flip.to(images.device)
    # Every row of every result lies in one piece in memory, in the padded image or in its padded mirror image, so that
    # a single `index_select` of rows does it all: several times faster than indexing pixels.
    rows = images.permute(0, 2, 3, 1)  # (N, H, W, C)
    high, wide = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros((2, count, high, wide, channels))
    inside = padded[:, :, padding : padding + height, padding : padding + width]
    inside[0], inside[1] = rows, rows.flip(2)
    pieces = padded.as_strided(((2 * count * high - 1) * wide + wide - width + 1, width * channels), (channels, 1))
    image = flip * count + torch.arange(count, device=images.device)[:, None]  # (N, 1)
    left = torch.where(flip, 2 * padding - right, right)
    starts = (image * high + down + torch.arange(height, device=images.device)) * wide + left  # (N, H)
    cropped = pieces.index_select(0, starts.flatten())
    return cropped.view(count, height, width, channels).permute(0, 3, 1, 2)
