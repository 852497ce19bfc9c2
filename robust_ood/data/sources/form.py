"""The form of a set's images: their size, depth and number of channels, by a stated policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.sets import ImageSet
from robust_ood.data.storage import ImageStorage
from robust_ood.errors import UserError
from robust_ood.randomness import generator

ResizePolicy = Literal["resize", "stretch", "center_crop", "random_crop"]
Channels = Literal[1, 3]
"""1: grey images. 3: RGB."""
LARGEST_SIZE = 16_384
"""Pixels of a side; a set of larger images fits into no memory."""


@dataclass(frozen=True)
class ImageForm:
    """What images of any size, depth and number of channels are brought to.

    Args:
        size: side of the result in pixels, in 1..16384; None leaves images of arrays as large as
            they are, and does not do for files.
        policy: "resize": the shorter side becomes `shorter` pixels, then the centre is cropped.
            "stretch": both sides become `size`, whatever the aspect ratio. "center_crop": the
            centre is cropped at the original resolution. "random_crop": a crop at the original
            resolution whose place is drawn once for each image (LSUN crop). An image smaller than
            the crop is enlarged first.
        shorter: length in pixels of the shorter side before "resize" crops; `size` by default
            (ImageNet: 256 for a `size` of 224).
        seed: seed of the places that "random_crop" draws.
        bits: of a value in files of more than 8 bits a channel, in 8..16: 12 where values reach
            4095. The upper 8 of them are kept.
        channels: 1 for grey images, 3 for RGB. Colours become grey by Rec. 601 (0.299, 0.587,
            0.114), as in Pillow; grey becomes RGB by repetition, and back without a loss.
    """

    size: int | None = None
    policy: ResizePolicy = "resize"
    shorter: int | None = None
    seed: int = 0
    bits: int | None = None
    channels: Channels = 3

    def __post_init__(self) -> None:
        require_within("size", self.size, 1, LARGEST_SIZE, "pixels")
        require_within("bits", self.bits, 8, 16, "bits of a value")
        if self.policy not in get_args(ResizePolicy):
            accepted = ", ".join(get_args(ResizePolicy))
            raise UserError(f"policy: expected one of {accepted}, got {self.policy!r}")
        if self.channels not in (1, 3) or isinstance(self.channels, bool):
            raise UserError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels!r}")
        if self.shorter is None:
            return
        require_within("shorter", self.shorter, 1, LARGEST_SIZE, "pixels")
        if self.policy != "resize":
            raise UserError(
                f"shorter: only policy 'resize' has it, got {self.shorter} with policy "
                f"{self.policy!r}"
            )
        if self.size is not None and self.shorter < self.size:
            raise UserError(
                f"shorter: expected at least size = {self.size} pixels, got {self.shorter}"
            )

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the results. Raises: `UserError` without a size."""
        if self.size is None:
            raise UserError("size: not given, and image files may have any size")
        return (self.size, self.size)

    @property
    def mode(self) -> str:
        """Pillow's name for the channels."""
        return "L" if self.channels == 1 else "RGB"

    def __call__(self, image: Image.Image, index: int) -> Image.Image:
        """Return an 8-bit image in this form, with antialiased bilinear resampling.

        index: place of the image in its set, which keys the place of a random crop.
        """
        if image.mode != self.mode:
            image = image.convert(self.mode)
        if self.size is None:
            return image
        side = self.size
        if image.size == (side, side) and self.shorter in (None, side):
            return image
        if self.policy == "stretch":
            return image.resize((side, side), Image.Resampling.BILINEAR)
        image = self._scale(image, side)
        left, top = self._corner(image, side, index)
        return image.crop((left, top, left + side, top + side))

    def pixels(self, image: Image.Image, index: int) -> NDArray[np.uint8]:
        """Return the pixels `(H, W, C)` of an 8-bit image in this form."""
        pixels = np.asarray(self(image, index))
        if self.channels == 1:
            return pixels[..., None]
        return pixels

    def _scale(self, image: Image.Image, side: int) -> Image.Image:
        """Return the image scaled so that the crop fits into it."""
        shorter = min(image.size)
        scaled_shorter = max(side, shorter)
        if self.policy == "resize":
            scaled_shorter = self.shorter or side
        if scaled_shorter == shorter:
            return image
        scale = scaled_shorter / shorter
        width = max(side, round(image.width * scale))
        height = max(side, round(image.height * scale))
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def _corner(self, image: Image.Image, side: int, index: int) -> tuple[int, int]:
        """Return the left and top of the crop."""
        spare_width = image.width - side
        spare_height = image.height - side
        if self.policy != "random_crop":
            return spare_width // 2, spare_height // 2
        source = generator(self.seed, "place of crop", index)
        draw = torch.rand(2, generator=source, dtype=torch.float64)
        return int(draw[0] * (spare_width + 1)), int(draw[1] * (spare_height + 1))


class FormedStorage:
    """A storage whose images are brought to another form when asked for."""

    def __init__(self, images: ImageStorage, form: ImageForm) -> None:
        self.images = images
        self.form = form
        self.dtype = np.dtype(np.uint8)
        sides = images.shape[1:3] if form.size is None else form.sides
        self.shape = (len(images), *sides, form.channels)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        indices = np.atleast_1d(np.asarray(indices))
        images = self.images[indices]  # (n, H, W, 1 or 3)
        if images.shape[3] == 1:
            images = images[..., 0]  # (n, H, W): Pillow's form of grey images
        formed = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for position, index in enumerate(indices.tolist()):
            formed[position] = self.form.pixels(Image.fromarray(images[position]), index)
        return formed


def bring_to_form(images: ImageSet, form: ImageForm) -> ImageSet:
    """Return a set of one size in another form; the set itself if it has that form already."""
    sized = form.size is None or images.image_shape == form.sides
    if sized and images.channels == form.channels:
        return images
    return replace(images, images=FormedStorage(images.images, form))


def require_within(field: str, value: int | None, low: int, high: int, unit: str) -> None:
    """Raise `UserError`, naming the field, unless a whole number is absent or in low..high."""
    if value is None:
        return
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low:
        raise UserError(f"{field}: expected a number of {unit} >= {low}, got {value!r}")
    if value > high:
        raise UserError(f"{field}: expected a number of {unit} <= {high}, got {value}")
