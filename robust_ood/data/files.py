"""Image files: decoded when asked for, brought to one size by a stated policy, converted to 8-bit
RGB.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.sets import UnreadableImagesError
from robust_ood.errors import UserError
from robust_ood.randomness import generator

Policy = Literal["resize", "stretch", "center_crop", "random_crop"]
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_SAMPLE = 256  # how many files are looked at beforehand for what has to be said once
_MODES = {
    "L": "grey",
    "LA": "grey",
    "1": "grey",
    "P": "palette",
    "PA": "palette",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
}


@dataclass(frozen=True)
class Fit:
    """How an image of any size becomes square.

    Args:
        size: side of the result in pixels.
        policy: "resize": the shorter side becomes `shorter` pixels, then the centre is cut out.
            "stretch": both sides become `size`, whatever the aspect. "center_crop": the centre is
            cut out at the original resolution. "random_crop": so is a place drawn once for each
            image (LSUN crop). An image smaller than the crop is enlarged first.
        shorter: the shorter side before "resize" cuts; `size` by default (ImageNet: 256 for a
            `size` of 224).
        seed: of the places that "random_crop" draws.
    """

    size: int
    policy: Policy = "resize"
    shorter: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size: {self.size} is not a number of pixels >= 1")
        if self.shorter is not None and (self.shorter < self.size or self.policy != "resize"):
            raise UserError(
                f"shorter: {self.shorter} with size {self.size}, policy {self.policy!r}; size or more with 'resize'"
            )

    def __call__(self, image: Image.Image, index: int) -> Image.Image:
        """Return the RGB image fitted; `index` keys the place of a random crop. Resampling is
        bilinear, antialiased.
        """
        side = self.size
        if image.size == (side, side) and self.shorter in (None, side):
            return image
        if self.policy == "stretch":
            return image.resize((side, side), Image.Resampling.BILINEAR)
        width, height = image.size
        shorter = (
            (self.shorter or side) if self.policy == "resize" else max(side, min(width, height))
        )
        if min(width, height) != shorter:
            scale = shorter / min(width, height)
            width, height = max(side, round(width * scale)), max(side, round(height * scale))
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - side) // 2, (height - side) // 2
        if self.policy == "random_crop":
            draw = torch.rand(
                2, generator=generator(self.seed, "place of crop", index), dtype=torch.float64
            )
            left, top = int(draw[0] * (width - side + 1)), int(draw[1] * (height - side + 1))
        return image.crop((left, top, left + side, top + side))


class ImageFiles:
    """Image files as a storage: indexed like an array, each image is decoded, converted and fitted
    when asked for.

    Grey, palette, CMYK, 16-bit and transparent images become 8-bit RGB (16 bits keep their upper 8,
    transparency is dropped), which is said once for the set, from a look at up to 256 of its files.

    Args:
        paths: the files.
        fit: how they become one size.
        name: name of the set, for messages.
    """

    def __init__(self, paths: Sequence[Path], fit: Fit, name: str) -> None:
        # One array of bytes, not a list of objects: worker processes then share its memory instead
        # of copying it.
        self._paths = np.array([str(path).encode() for path in paths], dtype=np.bytes_)
        self.fit, self.name = fit, name
        self.dtype, self.shape = np.dtype(np.uint8), (len(paths), fit.size, fit.size, 3)
        self._say_conversions()

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return Path(bytes(self._paths[index]).decode())

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        wanted = np.atleast_1d(np.asarray(indices))
        images = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        places, reasons = [], []
        for place, index in enumerate(wanted.tolist()):
            try:
                images[place] = np.asarray(self.fit(decode(self.path(index)), index))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                places.append(place)
                reasons.append(f"{self.path(index)} ({_first_line(error)})")
        if places:
            raise UnreadableImagesError(places, reasons)
        return images

    def _say_conversions(self) -> None:
        found: dict[str, int] = {}
        sample = sorted(
            {int(place) for place in np.linspace(0, len(self) - 1, min(len(self), _SAMPLE))}
        )
        for index in sample:
            try:
                with Image.open(self.path(index)) as image:
                    kind = conversion(image)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                continue  # reported when its turn comes to be read
            if kind:
                found[kind] = found.get(kind, 0) + 1
        if found:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
            warnings.warn(
                f"{self.name}: converted to 8-bit RGB: {kinds} of {len(sample)} files looked at",
                stacklevel=3,
            )


def conversion(image: Image.Image) -> str | None:
    """Return what has to be converted to make an image 8-bit RGB, in a word; None if nothing."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return None
    if image.mode.startswith("I"):
        return "16-bit"
    if image.mode == "F":
        return "floating-point"
    if image.mode in ("RGBA", "RGBa", "LA") or "transparency" in image.info:
        return "transparent"
    return _MODES.get(image.mode, image.mode)


def decode(path: Path) -> Image.Image:
    """Return an image file as 8-bit RGB.

    Raises: `OSError` or `ValueError` where the file is no whole image or its values have no known
    range.
    """
    if path.stat().st_size == 0:
        raise ValueError("empty file")
    with Image.open(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB; 16 bits keep their upper 8.

    Raises: `ValueError` for floating-point images, whose range nobody knows.
    """
    if image.mode == "F":
        raise ValueError("floating-point image; 8 or 16 bits a channel are wanted")
    if image.mode.startswith(
        "I"
    ):  # Pillow's own conversion clips 16 bits at 255 instead of scaling them
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("more than 16 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
