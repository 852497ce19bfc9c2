"""Image files: decoded when asked for, turned upright, and brought to a set's form."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.sources.form import ImageForm
from robust_ood.data.storage import UnreadableImagesError
from robust_ood.texts import printable

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_SAMPLE = 256  # how many files are inspected beforehand for conversions to warn about
_DECODED = 32  # how many of those of 16 bits are decoded to see what range their values use
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, how to turn an image upright."""
_MODES = {
    "L": "grey",
    "LA": "grey",
    "1": "grey",
    "P": "palette",
    "PA": "palette",
    "RGB": "colour",
    "CMYK": "CMYK",
    "YCbCr": "YCbCr",
}
# What Pillow raises on files that are damaged or that it does not know.
_DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


class EncodedImages(ABC):
    """Encoded images as a storage: each is decoded, turned upright and converted when asked for.

    Grey, palette, CMYK, 16-bit and transparent images become 8-bit RGB, or grey where the form has
    one channel (16 bits keep the upper 8 of the form's `bits`, transparency is dropped). One
    warning for the set says so, after inspecting up to 256 images.

    Args:
        count: how many images there are.
        form: what they are brought to; its size is needed.
        name: name of the set, for messages.
    """

    def __init__(self, count: int, form: ImageForm, name: str) -> None:
        self.form = form
        self.name = name
        self.dtype = np.dtype(np.uint8)
        self.shape = (count, *form.sides, form.channels)
        self._warn_of_conversions()

    @abstractmethod
    def encoded(self, index: int) -> Path | BytesIO:
        """Return an image as Pillow opens it. Raises: `OSError` or `ValueError` if it cannot."""

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return where an image is, for messages."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        indices = np.atleast_1d(np.asarray(indices))
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        positions: list[int] = []
        reasons: list[str] = []
        for position, index in enumerate(indices.tolist()):
            try:
                image = decode(self.encoded(index), self.form.bits)
                images[position] = self.form.pixels(image, index)
            except _DAMAGE as error:
                positions.append(position)
                reasons.append(f"{printable(self.describe(index))} ({_first_line(error)})")
        if positions:
            raise UnreadableImagesError(positions, reasons)
        return images

    def _warn_of_conversions(self) -> None:
        sample = np.linspace(0, len(self) - 1, min(len(self), _SAMPLE)).astype(int)
        sample = np.unique(sample)
        counts: Counter[str] = Counter()
        values = ValueRange()
        for index in sample.tolist():
            try:
                with Image.open(self.encoded(index)) as image:
                    kind = conversion(image, self.form.mode)
                    if kind == "16-bit" and counts[kind] < _DECODED:
                        values.include(image)
            except _DAMAGE:
                continue  # reported when it is read
            if kind:
                counts[kind] += 1
        if counts:
            wanted = "grey" if self.form.channels == 1 else "RGB"
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            warnings.warn(
                f"{self.name}: converted to 8-bit {wanted}: {kinds} of {len(sample)} inspected "
                f"files{values.advice(self.form.bits)}",
                stacklevel=4,
            )


class ImageFiles(EncodedImages):
    """Image files as a storage.

    Args:
        paths: the files; their names need not be UTF-8.
        form: what they are brought to; its size is needed.
        name: name of the set, for messages.
    """

    def __init__(self, paths: Sequence[Path], form: ImageForm, name: str) -> None:
        # One array of bytes instead of a list of objects, so that worker processes share its
        # memory instead of copying it.
        encoded = [os.fsencode(path) for path in paths]
        self._paths = np.array(encoded, dtype=np.bytes_)
        super().__init__(len(paths), form, name)

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return Path(os.fsdecode(bytes(self._paths[index])))

    def encoded(self, index: int) -> Path:
        """Return the file of an image."""
        return self.path(index)

    def describe(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.path(index))


class ValueRange:
    """Which part of their 16 bits the values of images use."""

    def __init__(self) -> None:
        self.largest: int | None = None

    def include(self, image: Image.Image) -> None:
        """Look at the values of one more image."""
        self.largest = max(self.largest or 0, int(np.asarray(image).max()))

    def advice(self, bits: int | None) -> str:
        """Return the end of a warning: the range that is used, and the setting that it calls for.

        bits: what the set states; None keeps the upper 8 of 16.
        """
        if self.largest is None:
            return ""
        largest_possible = 2 ** (bits or 16) - 1
        used = f"; their 16-bit values reach {self.largest} of {largest_possible}"
        needed = max(8, self.largest.bit_length())
        needed += needed % 2  # cameras and scanners have 8, 10, 12, 14 or 16
        if bits is not None or needed == 16:
            return used
        return f"{used}, so the images are dark: give the set `bits: {needed}` to scale them"


def conversion(image: Image.Image, mode: str = "RGB") -> str | None:
    """Return in a word what has to be converted to make an image 8-bit; None if nothing.

    Args:
        image: opened, and not decoded yet.
        mode: Pillow's name of the channels that are wanted, "RGB" or "L".
    """
    transparent = "transparency" in image.info
    if image.mode.startswith("I"):
        return "16-bit"
    if _is_deep_colour(image):
        return "16-bit colour"
    if image.mode == mode and not transparent:
        return None
    if image.mode == "F":
        return "floating-point"
    if image.mode in ("RGBA", "RGBa", "LA") or transparent:
        return "transparent"
    return _MODES.get(image.mode, image.mode)


def _is_deep_colour(image: Image.Image) -> bool:
    """Whether Pillow will keep only the upper 8 of a colour file's 16 bits, without a word."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]
        raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        if isinstance(raw_mode, str) and raw_mode.startswith("RGB") and ";16" in raw_mode:
            return True
    return False


def decode(encoded: Path | BytesIO, bits: int | None = None) -> Image.Image:
    """Return an image file as 8-bit RGB or grey, turned as its EXIF orientation says.

    Args:
        encoded: the file, or its content.
        bits: of a value in files of more than 8 bits a channel.

    Raises: `OSError` or `ValueError` if the file is damaged or its values have no known range.
    """
    size = encoded.stat().st_size if isinstance(encoded, Path) else len(encoded.getbuffer())
    if size == 0:
        raise ValueError("empty file")
    with Image.open(encoded) as image:
        if bits not in (None, 16) and _is_deep_colour(image):
            raise ValueError(
                f"of 16-bit colour only the upper 8 bits can be read, so `bits: {bits}` does not "
                "apply"
            )
        return to_bytes(upright(image), bits)


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned and mirrored as its camera noted."""
    image.load()  # after which a TIFF file is turned already, and no longer says how it was
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's reader raises anything on broken EXIF, which holds no pixels
        return image
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def to_bytes(image: Image.Image, bits: int | None = None) -> Image.Image:
    """Return an image with 8 bits a channel, grey if it is grey and else RGB.

    Args:
        image: an image of any mode of Pillow's.
        bits: of a value where there are more than 8; the upper 8 of them are kept. 16 by default.

    Raises: `ValueError` for floating-point images, whose range is unknown, and for values of more
        than `bits` bits.
    """
    if image.mode == "F":
        raise ValueError("floating-point image; expected 8 or 16 bits a channel")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255 instead of scaling them.
        values = np.asarray(image).astype(np.int64)
        used = 16 if bits is None else bits
        if values.min() < 0 or values.max() >= 2**used:
            raise ValueError(f"more than {used} bits a channel: values reach {values.max()}")
        return Image.fromarray((values >> (used - 8)).astype(np.uint8))
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode == "RGB":  # without looking at transparency, as Pillow's conversion does
        return image
    return image.convert("RGB")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
