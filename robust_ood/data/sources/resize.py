"""Images of any size brought to one square size by a stated policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.sets import ImageSet
from robust_ood.data.storage import ImageStorage
from robust_ood.errors import UserError
from robust_ood.randomness import generator

ResizePolicy = Literal["resize", "stretch", "center_crop", "random_crop"]


@dataclass(frozen=True)
class Resize:
    """How an image of any size becomes square.

    Args:
        size: side of the result in pixels.
        policy: "resize": the shorter side becomes `shorter` pixels, then the centre is cropped.
            "stretch": both sides become `size`, whatever the aspect ratio. "center_crop": the
            centre is cropped at the original resolution. "random_crop": a crop at the original
            resolution whose place is drawn once for each image (LSUN crop). An image smaller than
            the crop is enlarged first.
        shorter: length in pixels of the shorter side before "resize" crops; `size` by default
            (ImageNet: 256 for a `size` of 224).
        seed: seed of the places that "random_crop" draws.
    """

    size: int
    policy: ResizePolicy = "resize"
    shorter: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size: expected a number of pixels >= 1, got {self.size}")
        if self.shorter is None:
            return
        if self.shorter < self.size or self.policy != "resize":
            raise UserError(
                f"shorter: expected at least size = {self.size} pixels, and policy 'resize'; "
                f"got {self.shorter} with policy {self.policy!r}"
            )

    def __call__(self, image: Image.Image, index: int) -> Image.Image:
        """Return the RGB image resized, with antialiased bilinear resampling.

        index: place of the image in its set, which keys the place of a random crop.
        """
        side = self.size
        if image.size == (side, side) and self.shorter in (None, side):
            return image
        if self.policy == "stretch":
            return image.resize((side, side), Image.Resampling.BILINEAR)
        image = self._scale(image)
        left, top = self._corner(image, index)
        return image.crop((left, top, left + side, top + side))

    def _scale(self, image: Image.Image) -> Image.Image:
        """Return the image scaled so that the crop fits into it."""
        shorter = min(image.size)
        if self.policy == "resize":
            scaled_shorter = self.shorter or self.size
        else:
            scaled_shorter = max(self.size, shorter)
        if scaled_shorter == shorter:
            return image
        scale = scaled_shorter / shorter
        width = max(self.size, round(image.width * scale))
        height = max(self.size, round(image.height * scale))
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def _corner(self, image: Image.Image, index: int) -> tuple[int, int]:
        """Return the left and top of the crop."""
        spare_width = image.width - self.size
        spare_height = image.height - self.size
        if self.policy != "random_crop":
            return spare_width // 2, spare_height // 2
        source = generator(self.seed, "place of crop", index)
        draw = torch.rand(2, generator=source, dtype=torch.float64)
        return int(draw[0] * (spare_width + 1)), int(draw[1] * (spare_height + 1))


class ResizedStorage:
    """A storage whose images are brought to another size when asked for."""

    def __init__(self, images: ImageStorage, resize: Resize) -> None:
        self.images = images
        self.resize = resize
        self.dtype = np.dtype(np.uint8)
        self.shape = (len(images), resize.size, resize.size, 3)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        indices = np.atleast_1d(np.asarray(indices))
        images = self.images[indices]
        resized = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for position, index in enumerate(indices.tolist()):
            image = Image.fromarray(images[position])
            resized[position] = np.asarray(self.resize(image, index))
        return resized


def resize_set(images: ImageSet, resize: Resize | None) -> ImageSet:
    """Return a set of one size brought to another; the set itself if it has that size already."""
    if resize is None or images.image_shape == (resize.size, resize.size):
        return images
    return replace(images, images=ResizedStorage(images.images, resize))
