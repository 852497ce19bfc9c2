"""Sets of files read by several threads: into memory where they fit, else piece by piece."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.data.sets import ImageSet, ReadImages
from robust_ood.data.sources.draws import draws_when_read
from robust_ood.data.storage import ImageStorage, UnreadableImagesError

MEMORY_LIMIT = 2 * 2**30
"""Bytes up to which a set of files or of a data set's items is read into memory once, instead of
again in each epoch.
"""

_BLOCK = 64  # images that one thread reads at a time
_PIECE = 16  # the same, of a request of some hundreds


def read_into_memory(images: ImageSet, limit: int) -> ImageSet:
    """Return the set read into memory if it takes at most `limit` bytes, else unchanged.

    Images that cannot be read are left out. Memory maps stay mapped: the operating system keeps
    the used parts of them in memory already.

    Raises: `UserError` when more images cannot be read than the set's share.
    """
    size = int(np.prod(images.images.shape)) * images.images.dtype.itemsize
    if isinstance(images.images, np.ndarray) or size > limit:
        return images
    pixels = np.empty(images.images.shape, images.images.dtype)
    unreadable: list[int] = []

    def read_block(start: int) -> tuple[list[int], tuple[str, ...]]:
        return _read_block(images.images, pixels, start)

    # Threads suffice: decoding and resizing release the interpreter lock.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        blocks = threads.map(read_block, range(0, len(images), _BLOCK))
        for indices, reasons in blocks:
            unreadable += indices
            images.note_unreadable(reasons)
    if not unreadable:
        return replace(images, images=pixels)
    readable = np.setdiff1d(np.arange(len(images)), unreadable)
    labels = None if images.labels is None else images.labels[readable]
    return replace(images, images=pixels[readable], labels=labels, unreadable={})


def take_by_threads(images: ImageSet, indices: Tensor, threads: int) -> ReadImages:
    """Return what `images.take(indices)` gives, read by several threads.

    A set in memory, and one whose items draw random numbers, which the order of reading decides, is
    read by this thread alone.

    Args:
        images: the set.
        indices: `(n,)`.
        threads: how many; 0 and 1 read as `take` does.
    """
    is_single = threads < 2 or images.in_memory or draws_when_read(images.images)
    if is_single or len(indices) <= _PIECE:
        return images.take(indices)
    with ThreadPoolExecutor(threads) as pool:
        pieces = list(pool.map(images.take, torch.split(indices, _PIECE)))
    unreadable: tuple[str, ...] = ()
    for piece in pieces:
        unreadable += piece.unreadable
    return ReadImages(
        torch.cat([piece.images for piece in pieces]),
        torch.cat([piece.labels for piece in pieces]),
        torch.cat([piece.indices for piece in pieces]),
        unreadable,
    )


def _read_block(
    images: ImageStorage, pixels: NDArray[Any], start: int
) -> tuple[list[int], tuple[str, ...]]:
    """Read one block into `pixels`; return the indices of unreadable images and the reasons."""
    indices = np.arange(start, min(start + _BLOCK, len(images)))
    try:
        pixels[indices] = images[indices]
    except UnreadableImagesError as error:
        readable = np.delete(indices, error.positions)
        pixels[readable] = images[readable]
        return indices[error.positions].tolist(), tuple(error.reasons)
    return [], ()
