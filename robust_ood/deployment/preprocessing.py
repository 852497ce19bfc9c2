"""What a guard does to images of any size before its network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robust_ood.arguments import check_fields
from robust_ood.data import to_float
from robust_ood.data.sources.form import LARGEST_SIZE, Channels, ImageForm, ResizePolicy
from robust_ood.data.sources.form import require_within as require_number
from robust_ood.errors import UserError
from robust_ood.inputs import checked, from_numpy

LARGEST_ASPECT = 100
"""How much longer than the other an image's side may be."""
_KINDS = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Preprocessing:
    """Size, crop and channels of a network's images; normalisation is the network's first layer.

    Args:
        height: of the network's images in pixels, in 1..16384.
        width: likewise; images of other sizes need it to equal the height.
        channels: 1 for grey images, 3 for RGB.
        policy: how images of other sizes are brought to that size, as in `data.SetSpec`; not
            "random_crop", by which a decision would depend on an image's place.
        shorter: of "resize", length in pixels of the shorter side before the centre is cropped.
        bits: of a value in image files of more than 8 bits a channel, in 8..16.
    """

    height: int
    width: int
    channels: Channels = 3
    policy: ResizePolicy = "resize"
    shorter: int | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.policy == "random_crop":
            raise UserError(
                "policy: random_crop draws another place for each image of a set; a guard takes "
                "resize, stretch or center_crop"
            )
        require_number("height", self.height, 1, LARGEST_SIZE, "pixels")
        require_number("width", self.width, 1, LARGEST_SIZE, "pixels")
        self._form(self.height)  # checks the rest

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width, as the network takes an image."""
        return (self.channels, self.height, self.width)

    @property
    def form(self) -> ImageForm:
        """How image files are read. Raises: `UserError` where the network's images are oblong."""
        if self.height != self.width:
            raise UserError(
                f"images: the guard's network takes {self.height} x {self.width} pixels, and only "
                "square images are made of other sizes; give images of that size"
            )
        return self._form(self.height)

    def tensor(self, images: Any) -> Tensor:
        """Return a batch as the network takes it: float32 `(N, C, H, W)` in [0, 1].

        Images of the network's own size and channels are taken as they are. Others are brought to
        it as files are, in 8 bits.

        Args:
            images: `(N, C, H, W)`, or channels last `(N, H, W, C)`; uint8 in 0..255 or floats in
                [0, 1]; a tensor or a NumPy array.

        Raises: `UserError` for anything else.
        """
        images = channels_first(images)
        shape = tuple(images.shape[1:])
        if shape == self.input_shape:
            if images.dtype == torch.uint8:
                return to_float(images)
            return checked(_as_precise(images)).float()
        if images.dtype != torch.uint8:
            images = (checked(_as_precise(images)) * 255).round().to(torch.uint8)
        return to_float(self._reformed(images)).to(images.device)

    def pixels(self, image: Image.Image) -> Tensor:
        """Return an 8-bit image as the network's size and channels, uint8 `(C, H, W)`.

        Raises: `ValueError` for a strip, which scaling would make huge before it is cropped.
        """
        if max(image.size) > LARGEST_ASPECT * min(image.size):
            raise ValueError(
                f"{image.width} x {image.height} pixels; expected sides within "
                f"{LARGEST_ASPECT} to 1"
            )
        return torch.from_numpy(self.form.pixels(image, 0).copy()).permute(2, 0, 1)

    def _reformed(self, images: Tensor) -> Tensor:
        """Return uint8 images `(N, c, h, w)` in the guard's form, `(N, C, H, W)`."""
        arrays = images.cpu().permute(0, 2, 3, 1).numpy()  # (N, h, w, c)
        formed = []
        for array in arrays:
            plain = array[..., 0] if array.shape[2] == 1 else array
            image = Image.fromarray(np.ascontiguousarray(plain))
            if self.height == self.width:
                formed.append(self.pixels(image))
            elif array.shape[:2] == (self.height, self.width):  # only the channels differ
                form = self._form(None)
                formed.append(torch.from_numpy(form.pixels(image, 0).copy()).permute(2, 0, 1))
            else:
                self.form  # noqa: B018  # raises
        return torch.stack(formed)

    def _form(self, size: int | None) -> ImageForm:
        return ImageForm(size, self.policy, self.shorter, bits=self.bits, channels=self.channels)


def channels_first(images: Any) -> Tensor:
    """Return a batch with its channels in front, `(N, C, H, W)`, uint8 or floats.

    Raises: `UserError` for what is no batch of grey or RGB images.
    """
    images = from_numpy(images)
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
        images = torch.from_numpy(np.ascontiguousarray(images))
    if not isinstance(images, Tensor):
        raise UserError(
            f"images: expected a tensor or an array (N, C, H, W), got a {type(images).__name__}"
        )
    if images.dtype not in _KINDS:
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(f"images: expected uint8 in 0..255 or floats in [0, 1], got {kind}")
    shape = tuple(images.shape)
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or 0 in shape:
        raise UserError(
            f"images: expected a batch (N, C, H, W) or (N, H, W, C) with 1 or 3 channels, got "
            f"shape {shape}"
        )
    batch: Tensor = images
    return batch


def _as_precise(images: Tensor) -> Tensor:
    """Return float images in float32 or wider."""
    if images.dtype in (torch.float16, torch.bfloat16):
        return images.float()
    return images
