"""A set of images: what every source of images, whatever its storage, looks like to the rest."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.errors import UserError


class ImageStorage(Protocol):
    """What holds the pixels: indexed by an integer array it gives `uint8 (n, H, W, 3)`.

    An array or a memory map is one; image files that are decoded when asked for are another.
    """

    @property
    def dtype(self) -> np.dtype[Any]:
        """`uint8`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, H, W, 3)`."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any, /) -> NDArray[np.uint8]: ...


class UnreadableImagesError(Exception):
    """Some of the images asked for cannot be read: their places in the request, and for each which
    and why.
    """

    def __init__(self, places: list[int], reasons: list[str]) -> None:
        super().__init__(places, reasons)
        self.places, self.reasons = places, reasons


class Taken(NamedTuple):
    """What could be read of a request: images `uint8 (n, 3, H, W)`, labels and indices `(n,)`, and
    what could not.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, `uint8 (N, H, W, 3)`, in memory, memory-mapped or in files, with labels
    where there are any.

    Args:
        name: what the set is called in results and messages.
        images: `uint8 (N, H, W, 3)`; any array, or whatever can be indexed by an integer array like
            one.
        labels: `int64 (N,)` in 0..K-1, or None.
        class_names: one name for each class, or none.
        max_unreadable: the share of the images that may turn out unreadable before reading stops,
            in [0, 1].
    """

    name: str
    images: ImageStorage
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    max_unreadable: float = 0.01
    unreadable: dict[str, None] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8:
            raise UserError(
                f"{self.name}: images have dtype {images.dtype}; uint8 in 0..255 is wanted"
            )
        if len(images.shape) != 4 or images.shape[3] != 3:
            hint = (
                "; put the channels last" if len(images.shape) == 4 and images.shape[1] == 3 else ""
            )
            raise UserError(
                f"{self.name}: images have shape {images.shape}; (N, height, width, 3) is wanted{hint}"
            )
        if 0 in images.shape:
            raise UserError(f"{self.name}: holds no images (shape {images.shape})")
        if labels is None:
            return
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{self.name}: labels have shape {labels.shape} and dtype {labels.dtype}; "
                f"{len(images)} integers are wanted"
            )
        if labels.min() < 0:
            raise UserError(
                f"{self.name}: labels reach down to {labels.min()}; classes 0..K-1 are wanted"
            )

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` as `uint8 (n, 3, H, W)` in channels-last memory.

        Raises: `UserError` naming the first image that cannot be read.
        """
        try:
            return self._pixels(indices)
        except UnreadableImagesError as error:
            raise UserError(f"{self.name}: cannot read {error.reasons[0]}") from error

    def read_labels(self, indices: Tensor) -> Tensor:
        """Return the labels at `indices`, `int64 (n,)`; -1 where the set has none."""
        if self.labels is None:
            return torch.full((len(indices),), -1)
        return torch.from_numpy(self.labels[indices.numpy()].astype(np.int64))

    def take(self, indices: Tensor) -> Taken:
        """Return the images and labels at `indices`, leaving out, and naming, those that cannot be
        read.
        """
        try:
            return Taken(self._pixels(indices), self.read_labels(indices), indices)
        except UnreadableImagesError as error:
            kept = torch.ones(len(indices), dtype=torch.bool)
            kept[error.places] = False
            rest = indices[kept]
            return Taken(self._pixels(rest), self.read_labels(rest), rest, tuple(error.reasons))

    def note_unreadable(self, unreadable: tuple[str, ...]) -> None:
        """Name each unreadable image once, count them, and stop at more than the set's share.

        Raises: `UserError` when more than `max_unreadable` of the images could not be read.
        """
        for which in unreadable:
            if which not in self.unreadable:
                self.unreadable[which] = None
                warnings.warn(f"{self.name}: left out what cannot be read: {which}", stacklevel=2)
        if len(self.unreadable) > self.max_unreadable * len(self):
            raise UserError(
                f"{self.name}: {len(self.unreadable)} of {len(self)} images cannot be read, more than the share "
                f"max_unreadable = {self.max_unreadable:g}; the latest: {list(self.unreadable)[-1]}"
            )

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are an array in memory, neither mapped nor in files."""
        return isinstance(self.images, np.ndarray) and not isinstance(self.images, np.memmap)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.images.shape[1], self.images.shape[2])

    def require_classes(self, num_classes: int) -> None:
        """Raise `UserError` unless every image has a label in 0..num_classes-1."""
        if self.labels is None:
            raise UserError(f"{self.name}: has no labels; an in-distribution set needs them")
        if self.labels.max() >= num_classes:
            raise UserError(
                f"{self.name}: labels reach {self.labels.max()}, but the network has classes 0..{num_classes - 1}"
            )

    def subset(self, indices: NDArray[np.int64], name: str | None = None) -> ImageSet:
        """Return the set of the chosen images, in that order; files stay undecoded."""
        labels = None if self.labels is None else self.labels[indices]
        images = (
            self.images[indices] if self.in_memory else Chosen(self.images, np.asarray(indices))
        )
        return ImageSet(name or self.name, images, labels, self.class_names, self.max_unreadable)

    def _pixels(self, indices: Tensor) -> Tensor:
        chosen = torch.from_numpy(self.images[indices.numpy()])  # (n, H, W, 3)
        return chosen.permute(0, 3, 1, 2)


class Chosen:
    """Some images of a storage, by their indices, without copying any."""

    def __init__(self, images: ImageStorage, indices: NDArray[np.int64]) -> None:
        self.images, self.indices = images, indices
        self.dtype, self.shape = images.dtype, (len(indices), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        return self.images[self.indices[indices]]


class Excluded:
    """A storage without some of its images, however large: nothing is copied and no list of the
    rest is kept.

    The i-th image that is left is the image i + j of the storage, where j of the excluded ones come
    before it.
    """

    def __init__(self, images: ImageStorage, excluded: NDArray[np.int64]) -> None:
        excluded = np.unique(excluded)
        self.images = images
        self.dtype, self.shape = images.dtype, (len(images) - len(excluded), *images.shape[1:])
        self._left_before = excluded - np.arange(
            len(excluded)
        )  # how many are left before each excluded one

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        return self.images[indices + np.searchsorted(self._left_before, indices, side="right")]
