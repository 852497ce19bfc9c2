"""Synthetic images for OOD tests, the same in every run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.data.sets import ImageSet
from robust_ood.randomness import generator


def _gaussian(count: int, size: int, source: torch.Generator) -> Tensor:
    return (0.5 + torch.randn((count, size, size, 3), generator=source)).clamp(0, 1)


def uniform(count: int, size: int, source: torch.Generator) -> Tensor:
    """Return uniform noise `(N, size, size, 3)` in [0, 1]."""
    return torch.rand((count, size, size, 3), generator=source)


def _rademacher(count: int, size: int, source: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count, size, size, 3), generator=source).float()


def _blobs(count: int, size: int, source: torch.Generator) -> Tensor:
    """Binary noise blurred by a Gaussian of 1.5 pixels; values below 0.75 become 0."""
    binary = (torch.rand((count * 3, 1, size, size), generator=source) < 0.7).float()
    offsets = torch.arange(-6, 7.0)
    kernel = torch.exp(-(offsets**2) / (2 * 1.5**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(binary, (6, 6, 6, 6), mode="reflect")
    blurred = F.conv2d(padded, kernel.view(1, 1, 1, -1))
    blurred = F.conv2d(blurred, kernel.view(1, 1, -1, 1))
    bright = torch.where(blurred < 0.75, 0.0, blurred)  # (3 N, 1, H, W)
    return bright.view(count, 3, size, size).permute(0, 2, 3, 1)


def spirals(count: int, size: int, source: torch.Generator) -> Tensor:
    """Return Archimedean spirals of 1 to 4 arms between two colours, `(N, size, size, 3)`.

    Colours, centre, pitch, number of arms and direction are random.
    """
    draw = torch.rand((count, 5), generator=source)[:, :, None, None]  # (N, 5, 1, 1)
    colours = torch.rand((count, 2, 3), generator=source)
    axis = (torch.arange(size) + 0.5) * 2 / size - 1
    down = axis[None, :, None] - (draw[:, 0] - 0.5)  # (N, H, 1)
    right = axis[None, None, :] - (draw[:, 1] - 0.5)  # (N, 1, W)
    arms = (draw[:, 2] * 4).floor() + 1
    pitch = 2 * math.pi * (1 + 3 * draw[:, 3]) * (draw[:, 4] - 0.5).sign()
    angle = torch.atan2(down.expand(count, size, size), right.expand(count, size, size))
    radius = (down**2 + right**2).sqrt()  # (N, H, W)
    wave = torch.sin(arms * angle + pitch * radius)
    share = (0.5 + 0.5 * wave)[..., None]  # (N, H, W, 1)
    return share * colours[:, None, None, 0] + (1 - share) * colours[:, None, None, 1]


_DRAWS = {
    "gaussian": _gaussian,
    "uniform": uniform,
    "rademacher": _rademacher,
    "blobs": _blobs,
    "spirals": spirals,
}
_NAMES = {
    "gaussian": "gaussian-noise",
    "uniform": "uniform-noise",
    "rademacher": "rademacher-noise",
    "blobs": "blobs",
    "spirals": "spirals",
}


def noise(kind: str, count: int = 1000, size: int = 32, seed: int = 0) -> ImageSet:
    """Return `count` synthetic images.

    Source: Hendrycks et al. 2019 (OE): "gaussian" is N(0.5, 1) clipped to [0, 1], "uniform" is U(0,
    1), "rademacher" is 0 or 1 with equal chance, for each channel of each pixel (OE's code centres
    them on normalised inputs instead), and "blobs" is blurred and cut binary noise. "spirals" is
    ours: smooth structure without objects.
    """
    images = _DRAWS[kind](count, size, generator(seed, "noise", kind))
    return ImageSet(_NAMES[kind], images.mul(255).round().to(torch.uint8).numpy())


NOISE_SETS: dict[str, Callable[[], ImageSet]] = {
    f"noise/{kind}": partial(noise, kind) for kind in _DRAWS
}
"""Makers of the sets by name."""
