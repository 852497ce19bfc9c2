"""Images of a set that a method looks at before it trains."""

from __future__ import annotations

import torch

from robust_ood.data import ImageSet
from robust_ood.data.sets import ReadImages
from robust_ood.randomness import generator


def drawn(images: ImageSet, count: int, seed: int, purpose: str) -> ReadImages:
    """Return at most `count` images of a set, always the same ones for a seed and a purpose."""
    order = torch.randperm(len(images), generator=generator(seed, purpose))
    return images.take(order[:count].sort().values)
