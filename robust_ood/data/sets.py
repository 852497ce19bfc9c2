"""A set of images: what every source, whatever its storage, looks like to the rest."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.data.storage import ImageStorage, SubsetStorage, UnreadableImagesError
from robust_ood.errors import UserError


class ReadImages(NamedTuple):
    """The images of a request that could be read, and a description of each that could not.

    Args:
        images: `uint8 (n, C, H, W)`, or float32 in [0, 1] of a set of attacked images.
        labels: `(n,)`, -1 where the set has none.
        indices: `(n,)`, places in the set.
        unreadable: which images are missing, and why.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    unreadable: tuple[str, ...] = ()


def as_levels(images: Tensor) -> Tensor:
    """Return images as `uint8`, those that are floats in [0, 1] to the nearest of 256 levels."""
    if not images.is_floating_point():
        return images
    return images.mul(255).round().to(torch.uint8)


@dataclass(frozen=True)
class ImageSet:
    """Images of one size in memory, memory-mapped or in files, with labels if there are any.

    Args:
        name: what the set is called in results and messages.
        images: `uint8 (N, H, W, C)`, C = 3 for RGB or 1 for grey; an array, or any object that an
            integer array can index as it indexes an array.
        labels: `int64 (N,)` in 0..K-1, or None.
        class_names: one name for each class, or none.
        max_unreadable: the share of the images that may turn out to be unreadable before reading
            stops, in [0, 1].
        attack: the label of the attack that made the images, which may then be float32 in [0, 1]:
            8 bits would take back what it did between two levels.
    """

    name: str
    images: ImageStorage
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    max_unreadable: float = 0.01
    unreadable: dict[str, None] = field(default_factory=dict, repr=False, compare=False)
    attack: str | None = None

    def __post_init__(self) -> None:
        self._check_images()
        if self.labels is not None:
            object.__setattr__(self, "labels", self._checked_labels(self.labels))

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, `(n, C, H, W)`, in channels-last memory, as stored.

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

    def take(self, indices: Tensor) -> ReadImages:
        """Return the images and labels at `indices` that can be read, and name the others."""
        try:
            return ReadImages(self._pixels(indices), self.read_labels(indices), indices)
        except UnreadableImagesError as error:
            readable = torch.ones(len(indices), dtype=torch.bool)
            readable[error.positions] = False
            indices = indices[readable]
            unreadable = tuple(error.reasons)
        return ReadImages(self._pixels(indices), self.read_labels(indices), indices, unreadable)

    def note_unreadable(self, unreadable: tuple[str, ...]) -> None:
        """Warn once about each unreadable image, count them, and stop above the set's share.

        Raises: `UserError` when more than `max_unreadable` of the images could not be read.
        """
        for image in unreadable:
            if image not in self.unreadable:
                self.unreadable[image] = None
                warnings.warn(f"{self.name}: left out an unreadable image: {image}", stacklevel=2)
        if len(self.unreadable) > self.max_unreadable * len(self):
            latest = list(self.unreadable)[-1]
            raise UserError(
                f"{self.name}: {len(self.unreadable)} of {len(self)} images cannot be read, more "
                f"than the share max_unreadable = {self.max_unreadable:g}; the latest: {latest}"
            )

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are an array in memory, neither memory-mapped nor in files."""
        return isinstance(self.images, np.ndarray) and not isinstance(self.images, np.memmap)

    @property
    def is_float(self) -> bool:
        """Whether the pixels are float32 in [0, 1], as attacked images may be."""
        return bool(self.images.dtype == np.float32)

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.images.shape[1], self.images.shape[2])

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for RGB."""
        return self.images.shape[3]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, as a network takes an image."""
        return (self.channels, *self.image_shape)

    def require_classes(self, num_classes: int) -> None:
        """Raise `UserError` unless every image has a label in 0..num_classes-1."""
        if self.labels is None:
            raise UserError(f"{self.name}: has no labels; an in-distribution set needs them")
        if self.labels.max() >= num_classes:
            raise UserError(
                f"{self.name}: labels reach {self.labels.max()}, "
                f"but the network has classes 0..{num_classes - 1}"
            )

    def subset(self, indices: NDArray[np.int64], name: str | None = None) -> ImageSet:
        """Return the set of the images at `indices`, in that order; files stay undecoded."""
        labels = None if self.labels is None else self.labels[indices]
        images: ImageStorage
        if self.in_memory:
            images = self.images[indices]
        else:
            images = SubsetStorage(self.images, np.asarray(indices))
        return ImageSet(
            name or self.name,
            images,
            labels,
            self.class_names,
            self.max_unreadable,
            attack=self.attack,
        )

    def _pixels(self, indices: Tensor) -> Tensor:
        images = torch.from_numpy(self.images[indices.numpy()])  # (n, H, W, 3)
        return images.permute(0, 3, 1, 2)

    def _check_images(self) -> None:
        storage = hasattr(self.images, "dtype") and hasattr(self.images, "__getitem__")
        if not storage or isinstance(self.images, Tensor):
            raise UserError(
                f"{self.name}: images: expected an array uint8 (N, height, width, 3 or 1), got a "
                f"{type(self.images).__name__}"
            )
        shape = tuple(self.images.shape)
        if self.images.dtype != np.uint8 and not (self.is_float and self.attack is not None):
            raise UserError(
                f"{self.name}: expected images of dtype uint8 in 0..255, got {self.images.dtype}"
            )
        if len(shape) != 4 or shape[3] not in (1, 3):
            channels_first = len(shape) == 4 and shape[1] in (1, 3)
            hint = "; put the channels last" if channels_first else ""
            raise UserError(
                f"{self.name}: expected images of shape (N, height, width, 3), or with 1 channel "
                f"for grey ones, got {shape}{hint}"
            )
        if 0 in shape:
            raise UserError(f"{self.name}: holds no images (shape {shape})")

    def _checked_labels(self, given: object) -> NDArray[np.int64]:
        """Return the labels as an array; those that do not fit the images or names are refused."""
        labels: NDArray[np.int64]
        try:
            labels = np.asarray(given)
        except ValueError as error:  # rows of different lengths
            raise UserError(f"{self.name}: labels: expected {len(self)} integers") from error
        if labels.shape != (len(self),) or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(
                f"{self.name}: expected {len(self)} integers as labels, "
                f"got shape {labels.shape} and dtype {labels.dtype}"
            )
        if labels.min() < 0:
            raise UserError(f"{self.name}: expected labels in 0..K-1, got {labels.min()}")
        if self.class_names and labels.max() >= len(self.class_names):
            raise UserError(
                f"{self.name}: labels reach {labels.max()}, but class_names has only "
                f"{len(self.class_names)}: expected one name for each class"
            )
        return labels
