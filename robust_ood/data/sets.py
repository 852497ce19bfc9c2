"""A set of images: what every source of images, whatever its storage, looks like to the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, `uint8 (N, H, W, 3)`, in memory or memory-mapped, with labels where the set has them.

    Args:
        name: what the set is called in results and messages.
        images: `uint8 (N, H, W, 3)`; any array that can be indexed by an integer array.
        labels: `int64 (N,)` in 0..K-1, or None.
        class_names: one name for each class, or none.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != np.uint8:
            raise UserError(f"{self.name}: images have dtype {images.dtype}; uint8 in 0..255 is wanted")
        if images.ndim != 4 or images.shape[3] != 3:
            hint = "; put the channels last" if images.ndim == 4 and images.shape[1] == 3 else ""
            raise UserError(f"{self.name}: images have shape {images.shape}; (N, height, width, 3) is wanted{hint}")
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
            raise UserError(f"{self.name}: labels reach down to {labels.min()}; classes 0..K-1 are wanted")

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` as `uint8 (n, 3, H, W)` in channels-last memory."""
        chosen = torch.from_numpy(self.images[indices.numpy()])  # (n, H, W, 3)
        return chosen.permute(0, 3, 1, 2)

    def read_labels(self, indices: Tensor) -> Tensor:
        """Return the labels at `indices`, `int64 (n,)`; -1 where the set has none."""
        if self.labels is None:
            return torch.full((len(indices),), -1)
        return torch.from_numpy(self.labels[indices.numpy()].astype(np.int64))

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
        """Return the set of the chosen images, in that order."""
        labels = None if self.labels is None else self.labels[indices]
        return ImageSet(name or self.name, self.images[indices], labels, self.class_names)
