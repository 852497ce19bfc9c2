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


def image_keys(images: Tensor) -> Tensor:
    """Return one 62-bit number an image, `(N,)` int64, uniform over different images.

    Args:
        images: floats in [0, 1], `(N, C, H, W)`, read in 256 grey levels; of large ones, evenly
            spaced pixels.
    """
    flat = images.detach().flatten(1)
    stride = -(-flat.shape[1] // _PIXELS)
    levels = (flat[:, ::stride] * 255).round().long()  # (N, pixels)
    draws = generator(0, "fingerprints")  # the name that this purpose has always had
    weights = torch.randint(-(1 << 62), 1 << 62, (levels.shape[1],), generator=draws)
    # Products wrap around, which is what a hash needs.
    return _mixed((levels * weights.to(levels.device)).sum(1))


def _mixed(numbers: Tensor) -> Tensor:
    """Spread the information of the low bits over all of them (the finaliser of SplitMix64)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        numbers = (numbers ^ _shifted(numbers, shift)) * factor
    mixed = numbers ^ _shifted(numbers, 31)
    return mixed >> 1 & ((1 << 62) - 1)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def image_digests(images: Tensor) -> list[bytes]:
    """Return one 16-byte digest an image, of all its pixels.

    Equal images, and practically only they, have equal digests.

    Args:
        images: `(N, C, H, W)`, uint8 or floats in [0, 1].
    """
    levels = images
    if images.dtype != torch.uint8:
        levels = (images.detach() * 255).round().to(torch.uint8)
    digests = []
    for image in levels:
        pixels = image.contiguous().cpu().numpy().tobytes()
        digests.append(hashlib.blake2b(pixels, digest_size=16).digest())
    return digests
