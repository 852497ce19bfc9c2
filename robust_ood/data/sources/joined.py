"""Several storages of images of one size as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.storage import ImageStorage, UnreadableImagesError


class JoinedStorage:
    """The images of several storages, one storage after the other, without a copy.

    Args:
        parts: storages whose images have one shape.
    """

    def __init__(self, parts: Sequence[ImageStorage]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, parts)])
        self.dtype = parts[0].dtype
        self.shape = (int(self.starts[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def draws(self) -> bool:
        """Whether items of one of them are drawn when they are read."""
        return any(_draws(part) for part in self.parts)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        wanted = np.asarray(indices)
        images = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        positions: list[int] = []
        reasons: list[str] = []
        of_part = np.searchsorted(self.starts, wanted, side="right") - 1
        for place, part in enumerate(self.parts):
            (chosen,) = np.nonzero(of_part == place)
            if not len(chosen):
                continue
            try:
                images[chosen] = part[wanted[chosen] - self.starts[place]]
            except UnreadableImagesError as error:
                positions += [int(chosen[position]) for position in error.positions]
                reasons += error.reasons
        if positions:
            raise UnreadableImagesError(positions, reasons)
        return images


def _draws(storage: Any) -> bool:
    while hasattr(storage, "images"):  # a part of a storage
        storage = storage.images
    return bool(getattr(storage, "draws", False))
