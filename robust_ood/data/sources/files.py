"""Image files: decoded when asked for, converted to 8-bit RGB, and resized."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.sources.resize import Resize
from robust_ood.data.storage import UnreadableImagesError

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_SAMPLE = 256  # how many files are inspected beforehand for conversions to warn about
_MODES = {
    "L": "grey",
    "LA": "grey",
    "1": "grey",
    "P": "palette",
    "PA": "palette",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
}
# What Pillow raises on files that are damaged or that it does not know.
_DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class ImageFiles:
    """Image files as a storage: each image is decoded, converted and resized when asked for.

    Grey, palette, CMYK, 16-bit and transparent images become 8-bit RGB (16 bits keep their upper 8,
    transparency is dropped). One warning for the set says so, after inspecting up to 256 files.

    Args:
        paths: the files.
        resize: how they become one size.
        name: name of the set, for messages.
    """

    def __init__(self, paths: Sequence[Path], resize: Resize, name: str) -> None:
        # One array of bytes instead of a list of objects, so that worker processes share its
        # memory instead of copying it.
        encoded = [str(path).encode() for path in paths]
        self._paths = np.array(encoded, dtype=np.bytes_)
        self.resize = resize
        self.name = name
        self.dtype = np.dtype(np.uint8)
        self.shape = (len(paths), resize.size, resize.size, 3)
        self._warn_of_conversions()

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return Path(bytes(self._paths[index]).decode())

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        indices = np.atleast_1d(np.asarray(indices))
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        positions: list[int] = []
        reasons: list[str] = []
        for position, index in enumerate(indices.tolist()):
            try:
                image = self.resize(decode(self.path(index)), index)
            except _DAMAGE as error:
                positions.append(position)
                reasons.append(f"{self.path(index)} ({_first_line(error)})")
            else:
                images[position] = np.asarray(image)
        if positions:
            raise UnreadableImagesError(positions, reasons)
        return images

    def _warn_of_conversions(self) -> None:
        sample = np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(int)
        sample = np.unique(sample)
        counts: Counter[str] = Counter()
        for index in sample.tolist():
            try:
                with Image.open(self.path(index)) as image:
                    kind = conversion(image)
            except _DAMAGE:
                continue  # reported when it is read
            if kind:
                counts[kind] += 1
        if counts:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            warnings.warn(
                f"{self.name}: converted to 8-bit RGB: {kinds} of {len(sample)} inspected files",
                stacklevel=3,
            )


def conversion(image: Image.Image) -> str | None:
    """Return in a word what has to be converted to make an image 8-bit RGB; None if nothing."""
    transparent = "transparency" in image.info
    if image.mode == "RGB" and not transparent:
        return None
    if image.mode.startswith("I"):
        return "16-bit"
    if image.mode == "F":
        return "floating-point"
    if image.mode in ("RGBA", "RGBa", "LA") or transparent:
        return "transparent"
    return _MODES.get(image.mode, image.mode)


def decode(path: Path) -> Image.Image:
    """Return an image file as 8-bit RGB.

    Raises: `OSError` or `ValueError` if the file is damaged or its values have no known range.
    """
    if path.stat().st_size == 0:
        raise ValueError("empty file")
    with Image.open(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit RGB; 16 bits keep their upper 8.

    Raises: `ValueError` for floating-point images, whose range is unknown.
    """
    if image.mode == "F":
        raise ValueError("floating-point image; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("more than 16 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
