"""Synthetic noise images for OOD tests, the same in every run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from robust_ood.data.sets import ImageSet
from robust_ood.randomness import generator


def _gaussian(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return (0.5 + torch.randn(shape, generator=g)).clamp(0, 1)


def _uniform(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=g)


def _rademacher(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=g).float()


_DRAWS = {"gaussian": _gaussian, "uniform": _uniform, "rademacher": _rademacher}


def noise(kind: str, count: int = 1000, size: int = 32, seed: int = 0) -> ImageSet:
    """Return `count` noise images.

    Source: Hendrycks et al. 2019 (OE): "gaussian" is N(0.5, 1) clipped to [0, 1], "uniform" is U(0, 1), "rademacher" is
    0 or 1 with equal chance, for each channel of each pixel. (OE's code centres them on normalised inputs instead.)
    """
    images = _DRAWS[kind]((count, size, size, 3), generator(seed, "noise", kind))
    return ImageSet(f"{kind}-noise", images.mul(255).round().to(torch.uint8).numpy())


NOISE_SETS: dict[str, Callable[[], ImageSet]] = {f"noise/{kind}": partial(noise, kind) for kind in _DRAWS}
