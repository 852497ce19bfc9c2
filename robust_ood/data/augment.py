"""Batched augmentation on whatever device the batch is on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Return each image cropped at a random place after zero padding, and mirrored with probability one half.

    Source: the training augmentation of all the CIFAR recipes (He et al. 2016).

    Args:
        images: `(N, C, H, W)`, any dtype.
        generator: where the draws come from; on the images' device.
        padding: pixels added on each side before the crop.
    """
    count, _, height, width = images.shape
    draw = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=generator.device)
    flip = torch.rand((count, 1), generator=generator, device=generator.device) < 0.5
    down, right, flip = draw[0].to(images.device), draw[1].to(images.device), flip.to(images.device)
    rows = torch.arange(height, device=images.device) + down  # (N, H)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flip, columns.flip(0), columns) + right  # (N, W)
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)  # (N, H + 2p, W + 2p, C)
    batch = torch.arange(count, device=images.device)[:, None, None]
    return padded[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
