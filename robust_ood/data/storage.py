"""From one way of holding images to another: fitted to a size, and read into memory where they
fit.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.files import Fit
from robust_ood.data.sets import ImageSet, ImageStorage, UnreadableImagesError

_CHUNK = 64  # images read by one thread at a time


class Fitted:
    """A storage whose images are brought to another size when asked for."""

    def __init__(self, images: ImageStorage, fit: Fit) -> None:
        self.images, self.fit = images, fit
        self.dtype, self.shape = np.dtype(np.uint8), (len(images), fit.size, fit.size, 3)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        wanted = np.atleast_1d(np.asarray(indices))
        images = zip(self.images[wanted], wanted.tolist(), strict=True)
        return np.stack(
            [np.asarray(self.fit(Image.fromarray(image), index)) for image, index in images]
        )


def fitted(images: ImageSet, fit: Fit | None) -> ImageSet:
    """Return a set of one size brought to another; the set itself where it has that size
    already.
    """
    if fit is None or images.image_shape == (fit.size, fit.size):
        return images
    return replace(images, images=Fitted(images.images, fit))


def in_memory(images: ImageSet, limit: int) -> ImageSet:
    """Return the set read into memory, without what cannot be read, if it takes at most `limit`
    bytes; else as it is.

    Memory maps stay mapped: the operating system keeps what is used of them in memory already.

    Raises: `UserError` when more images than the set's share cannot be read.
    """
    if isinstance(images.images, np.ndarray) or int(np.prod(images.images.shape)) > limit:
        return images
    pixels = np.empty(images.images.shape, np.uint8)
    starts = range(0, len(images), _CHUNK)
    bad: list[int] = []
    with ThreadPoolExecutor(
        os.cpu_count()
    ) as threads:  # decoding and resizing leave the interpreter's lock
        for places, reasons in threads.map(
            lambda start: _read(images.images, pixels, start), starts
        ):
            bad += places
            images.note_unreadable(reasons)
    if not bad:
        return replace(images, images=pixels)
    kept = np.setdiff1d(np.arange(len(images)), bad)
    labels = None if images.labels is None else images.labels[kept]
    return replace(images, images=pixels[kept], labels=labels, unreadable={})


def _read(
    images: ImageStorage, pixels: NDArray[np.uint8], start: int
) -> tuple[list[int], tuple[str, ...]]:
    wanted = np.arange(start, min(start + _CHUNK, len(images)))
    try:
        pixels[wanted] = images[wanted]
    except UnreadableImagesError as error:
        good = np.delete(wanted, error.places)
        pixels[good] = images[good]
        return [start + place for place in error.places], tuple(error.reasons)
    return [], ()
