"""Duplicates between two sets of images: the same pixels, or nearly the same picture.

The perceptual hash is our own, and not the library imagehash: its 64 bits include the mean, which
says nothing here, it has no test for images without structure, it hashes one image at a time (2.6
times slower), and it would add two dependencies (itself and PyWavelets) for ten lines of code.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.data.loaders import EvaluationLoader
from robust_ood.data.reading import Reading
from robust_ood.data.sets import ImageSet, as_levels
from robust_ood.errors import UserError

BITS = 63  # of the perceptual hash
_SIDE = 32  # of the grey image that is hashed
_FREQUENCIES = 8  # kept in each direction
_ROWS = 4096  # of the first set that are compared with all of the second at a time

Pair = tuple[int, int]


@dataclass(frozen=True)
class Overlap:
    """Pairs of images that two sets share.

    exact, near: `(P, 2)` indices in the first and in the second set; `near` holds no exact pair.
    distances: `(P,)` of the near pairs, in bits of the hash.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]
    distances: NDArray[np.int64]

    def first(self) -> NDArray[np.int64]:
        """Return the indices, ascending, of images of the first set that the second has too."""
        return np.unique(np.concatenate([self.exact[:, 0], self.near[:, 0]]))


def overlap(first: ImageSet, second: ImageSet, distance: int = 4, workers: int = 0) -> Overlap:
    """Find the images of one set that another has too.

    Exact duplicates have the same pixels at the sets' common size. Near ones have perceptual hashes
    that differ in at most `distance` of their 63 bits: resizing, recompression and slight changes
    of brightness leave the hash nearly unchanged. Images almost without structure are left out of
    the near search, where all of them would look alike.

    Args:
        first, second: sets of the same image size; a set compared with itself gives each pair once.
        distance: bits, in 0..63; negative looks for exact duplicates only.
        workers: processes that read images that are not in memory.

    Raises:
        UserError: the sets have different image sizes, or the distance is above 63.
    """
    if distance > BITS:
        raise UserError(f"distance: expected at most {BITS}, the bits of a hash, got {distance}")
    if first.image_shape != second.image_shape:
        raise UserError(
            f"overlap: images are {first.image_shape} in {first.name} and "
            f"{second.image_shape} in {second.name}"
        )
    if first.channels != second.channels:
        raise UserError(
            f"overlap: images have {first.channels} channel(s) in {first.name} and "
            f"{second.channels} in {second.name}"
        )
    first_hashes = _hash_set(first, workers)
    second_hashes = _hash_set(second, workers)
    same_set = first is second
    exact = _exact_pairs(first_hashes, second_hashes, same_set)
    near: list[Pair] = []
    distances: list[int] = []
    if distance >= 0:
        near, distances = _near_pairs(first_hashes, second_hashes, distance, same_set)
    return Overlap(_as_array(exact), _as_array(near), np.array(distances, np.int64))


def perceptual_hash(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hash of each image, as signs `(n, 63)`, and whether it has structure, `(n,)`.

    images: `uint8 (n, C, H, W)`, C = 3 for RGB or 1 for grey.

    Source: the pHash of Zauner 2010: which of the 63 lowest frequencies of a discrete cosine
    transform of the grey image at 32 x 32 (without the mean) are above their median.
    """
    grey = images.float()  # (n, C, H, W)
    if images.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        grey = (grey * weights).sum(1, keepdim=True)  # (n, 1, H, W)
    side = (_SIDE, _SIDE)
    small = F.interpolate(grey, size=side, mode="bilinear", antialias=True, align_corners=False)
    small = small[:, 0]  # (n, 32, 32)
    angles = (torch.arange(_SIDE) + 0.5) * math.pi / _SIDE
    cosines = torch.cos(torch.arange(_FREQUENCIES)[:, None] * angles)  # (8, 32)
    frequencies = (cosines @ small @ cosines.T).flatten(1)[:, 1:]  # (n, 63)
    above = frequencies > frequencies.median(1, keepdim=True).values
    has_structure = small.flatten(1).std(1) > 4
    return torch.where(above, 1.0, -1.0), has_structure


@dataclass(frozen=True)
class _Hashes:
    """Hashes of the readable images of a set: their indices, digests of the pixels `(N,)`,
    perceptual hashes `(N, 63)`, and whether they have structure `(N,)`.
    """

    indices: list[int]
    digests: list[bytes]
    signs: Tensor
    structured: Tensor


def _hash_set(images: ImageSet, workers: int) -> _Hashes:
    indices: list[int] = []
    digests: list[bytes] = []
    signs: list[Tensor] = []
    structured: list[Tensor] = []
    for batch in EvaluationLoader(images, batch_size=512, reading=Reading(workers)):
        indices += batch.indices.tolist()
        levels = as_levels(batch.images)
        pixels = levels.permute(0, 2, 3, 1).contiguous().numpy()  # (n, H, W, C)
        digests += [hashlib.blake2b(image, digest_size=16).digest() for image in pixels]
        batch_signs, batch_structured = perceptual_hash(levels)
        signs.append(batch_signs)
        structured.append(batch_structured)
    return _Hashes(indices, digests, torch.cat(signs), torch.cat(structured))


def _exact_pairs(first: _Hashes, second: _Hashes, same_set: bool) -> list[Pair]:
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in zip(second.indices, second.digests, strict=True):
        by_digest[digest].append(index)
    pairs = []
    for i, digest in zip(first.indices, first.digests, strict=True):
        for j in by_digest.get(digest, ()):
            if not same_set or i < j:
                pairs.append((i, j))
    return pairs


def _near_pairs(
    first: _Hashes, second: _Hashes, distance: int, same_set: bool
) -> tuple[list[Pair], list[int]]:
    """Return the pairs of hashes at most `distance` bits apart, and how many bits that is."""
    pairs: list[Pair] = []
    distances: list[int] = []
    columns = torch.where(second.structured[:, None], second.signs, 0).T.contiguous()
    for start in range(0, len(first.signs), _ROWS):
        rows = slice(start, start + _ROWS)
        signs = first.signs[rows] * first.structured[rows, None]
        # A product of signs counts equal bits minus different ones; without structure it is 0.
        bits = (BITS - signs @ columns) / 2
        for row, column in (bits <= distance).nonzero().tolist():
            if first.digests[start + row] == second.digests[column]:
                continue  # an exact pair
            i = first.indices[start + row]
            j = second.indices[column]
            if not same_set or i < j:
                pairs.append((i, j))
                distances.append(int(bits[row, column]))
    return pairs, distances


def _as_array(pairs: list[Pair]) -> NDArray[np.int64]:
    return np.array(pairs, np.int64).reshape(-1, 2)
