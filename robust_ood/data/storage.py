"""What holds an image set's pixels, and views of it that copy nothing."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class ImageStorage(Protocol):
    """What holds the pixels: indexed by an integer array, it gives `uint8 (n, H, W, C)`.

    Attacked images may be float32 in [0, 1]. An array or a memory map is one; image files that are
    decoded when asked for are another.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """`uint8`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W, C)`, C = 3 for RGB or 1 for grey."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> NDArray[np.uint8]: ...


class UnreadableImagesError(Exception):
    """Some of the requested images cannot be read.

    Args:
        positions: where these images are in the request.
        reasons: for each of them, which image it is and why it cannot be read.
    """

    def __init__(self, positions: list[int], reasons: list[str]) -> None:
        super().__init__(positions, reasons)
        self.positions = positions
        self.reasons = reasons


class SubsetStorage:
    """The images of a storage at the given indices, in that order, without a copy."""

    def __init__(self, images: ImageStorage, indices: NDArray[np.int64]) -> None:
        self.images = images
        self.indices = indices
        self.dtype = images.dtype
        self.shape = (len(indices), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        return self.images[self.indices[indices]]


class ExcludingStorage:
    """A storage without some of its images.

    It copies no image and keeps no list of the remaining ones, so the storage may be very large.
    The i-th remaining image is the image i + j of the storage, where j is the number of excluded
    images before it.
    """

    def __init__(self, images: ImageStorage, excluded: NDArray[np.int64]) -> None:
        excluded = np.unique(excluded)
        self.images = images
        self.dtype = images.dtype
        self.shape = (len(images) - len(excluded), *images.shape[1:])
        # How many images remain before each excluded one.
        self._remaining_before = excluded - np.arange(len(excluded))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        excluded_before = np.searchsorted(self._remaining_before, indices, side="right")
        return self.images[indices + excluded_before]
