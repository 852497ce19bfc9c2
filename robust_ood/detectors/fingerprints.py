"""Numbers that depend on an image's pixels alone.

They decide which images of a training set are sampled or held out, so that the choice depends
neither on the order in which a loader gives them nor on how processes share them.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from robust_ood.randomness import generator

_PIXELS = 4096


def fingerprints(images: Tensor) -> Tensor:
    """Return one 62-bit number an image, `(N,)` int64, uniform over different images.

    Args:
        images: floats in [0, 1], `(N, C, H, W)`, read in 256 grey levels; of large ones, evenly
            spaced pixels.
    """
    flat = images.detach().flatten(1)
    flat = flat[:, :: -(-flat.shape[1] // _PIXELS)]
    levels = (flat * 255).round().long()  # (N, pixels)
    draws = generator(0, "fingerprints")
    weights = torch.randint(-(1 << 62), 1 << 62, (levels.shape[1],), generator=draws).to(
        levels.device
    )
    return _mixed((levels * weights).sum(1))  # products wrap around, which is what a hash wants


def _mixed(numbers: Tensor) -> Tensor:
    """Spread the information of the low bits over all of them (the finaliser of SplitMix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        numbers = (numbers ^ _shifted(numbers, shift)) * factor
    return (numbers ^ _shifted(numbers, 31)) >> 1 & ((1 << 62) - 1)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def digests(images: Tensor) -> list[bytes]:
    """Return one 16-byte digest of all pixels an image: equal for equal images, and practically
    only for those.
    """
    levels = (
        images if images.dtype == torch.uint8 else (images.detach() * 255).round().to(torch.uint8)
    )
    return [
        hashlib.blake2b(image.contiguous().cpu().numpy().tobytes(), digest_size=16).digest()
        for image in levels
    ]
