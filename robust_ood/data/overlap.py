"""Duplicates between two sets of images: the same pixels, or nearly the same picture."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.data.loaders import EvaluationLoader
from robust_ood.data.reading import Reading
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError

BITS = 63  # of the perceptual hash
_SIDE, _KEPT = 32, 8
_ROWS = 4096  # of the first set that are compared with all of the second at a time


@dataclass(frozen=True)
class Overlap:
    """Pairs of images that two sets share.

    exact, near: `(P, 2)` places in the first and in the second set; `near` holds no pair that is
    exact. distances: `(P,)` of the near pairs, in bits of the hash.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]
    distances: NDArray[np.int64]

    def first(self) -> NDArray[np.int64]:
        """Return the places in the first set of images that the second has too, ascending."""
        return np.unique(np.concatenate([self.exact[:, 0], self.near[:, 0]]))


def overlap(first: ImageSet, second: ImageSet, distance: int = 4, workers: int = 0) -> Overlap:
    """Find the images of one set that another has too.

    Exact duplicates have the same pixels at the sets' common size. Near ones have perceptual hashes
    that differ in at most `distance` of their 63 bits: resizing, recompression and slight changes
    of brightness leave the hash nearly as it is. Images almost without structure are left out of
    the near search, where all of them would look alike.

    Args:
        first, second: sets of the same image size; a set compared with itself gives each pair once.
        distance: bits, in 0..63; negative looks for exact duplicates only.
        workers: processes that read images that are not in memory.

    Raises:
        UserError: sets of different sizes, a distance above 63.
    """
    if distance > 63:
        raise UserError(f"distance: {distance} is more than the 63 bits of a hash")
    if first.image_shape != second.image_shape:
        raise UserError(
            f"overlap: images are {first.image_shape} in {first.name} and {second.image_shape} in {second.name}"
        )
    mine, theirs = _digests(first, workers), _digests(second, workers)
    itself = first is second
    by_digest: dict[bytes, list[int]] = {}
    for index, key in zip(theirs.indices, theirs.keys, strict=True):
        by_digest.setdefault(key, []).append(index)
    exact = [
        (i, j)
        for i, key in zip(mine.indices, mine.keys, strict=True)
        for j in by_digest.get(key, ())
        if not itself or i < j
    ]
    near, distances = _near(mine, theirs, distance, itself)
    return Overlap(np.array(exact, np.int64).reshape(-1, 2), near, distances)


def perceptual_hash(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return 63 signs `(n, 63)` for `uint8 (n, 3, H, W)` images, and whether each image has
    structure, bool `(n,)`.

    Source: the pHash of Zauner 2010: which of the 63 lowest frequencies of a discrete cosine
    transform of the grey image at 32 x 32 (without the mean) are above their median.
    """
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (images.float() * weights).sum(1, keepdim=True)
    small = F.interpolate(
        grey, size=(_SIDE, _SIDE), mode="bilinear", antialias=True, align_corners=False
    )[:, 0]
    steps = (torch.arange(_SIDE) + 0.5) * math.pi / _SIDE
    cosines = torch.cos(torch.arange(_KEPT)[:, None] * steps)  # (8, 32)
    frequencies = (cosines @ small @ cosines.T).flatten(1)[:, 1:]  # (n, 63)
    signs = torch.where(frequencies > frequencies.median(1, keepdim=True).values, 1.0, -1.0)
    return signs, small.flatten(1).std(1) > 4


@dataclass(frozen=True)
class _Digests:
    indices: list[int]
    keys: list[bytes]
    signs: Tensor
    structured: Tensor


def _digests(images: ImageSet, workers: int) -> _Digests:
    indices: list[int] = []
    keys: list[bytes] = []
    signs, structured = [], []
    for batch in EvaluationLoader(images, batch_size=512, reading=Reading(workers)):
        indices += batch.indices.tolist()
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
        keys += [hashlib.blake2b(image, digest_size=16).digest() for image in pixels]
        sign, has = perceptual_hash(batch.images)
        signs.append(sign)
        structured.append(has)
    return _Digests(indices, keys, torch.cat(signs), torch.cat(structured))


def _near(
    mine: _Digests, theirs: _Digests, distance: int, itself: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    found, distances = [], []
    if distance >= 0:
        columns = torch.where(theirs.structured[:, None], theirs.signs, 0).T.contiguous()
        for start in range(0, len(mine.signs), _ROWS):
            rows = mine.signs[start : start + _ROWS] * mine.structured[start : start + _ROWS, None]
            bits = (
                BITS - rows @ columns
            ) / 2  # a product of signs counts equal bits less different ones
            for i, j in (bits <= distance).nonzero().tolist():
                one, other = mine.indices[start + i], theirs.indices[j]
                if mine.keys[start + i] != theirs.keys[j] and (not itself or one < other):
                    found.append((one, other))
                    distances.append(int(bits[i, j]))
    return np.array(found, np.int64).reshape(-1, 2), np.array(distances, np.int64)
