"""Images from strangers: every limit is tested before what it protects is spent."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robust_ood.data.sources.files import to_bytes, upright
from robust_ood.deployment.preprocessing import Preprocessing
from robust_ood.texts import first_sentence, printable

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Formats that are decoded; the first picture of those that move."""


@dataclass(frozen=True)
class Limits:
    """What a service takes.

    Args:
        body: bytes of a request.
        pixels: of an image, before it is decoded.
        images: of a request.
        waiting: images that may wait to be scored; further requests are told to come again.
        batch: images scored together.
        patience: milliseconds that an image waits for others to be scored with.
        seconds: in which a request's body must arrive.
    """

    body: int = 2**24
    pixels: int = 25_000_000
    images: int = 64
    waiting: int = 2048
    batch: int = 32
    patience: float = 2.0
    seconds: float = 30.0


class RefusedError(Exception):
    """A request that is not answered: a status of HTTP, and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(printable(first_sentence(Exception(message), 300)))
        self.status = status


def read_upload(content: bytes, preprocessing: Preprocessing, limits: Limits) -> Tensor:
    """Return an uploaded image as the network's size, uint8 `(C, H, W)`.

    Raises: `RefusedError` for what is no image of an accepted format, too large, or damaged.
    """
    if not content:
        raise RefusedError(400, "image: is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; ours are counted below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image, limits)
                image.load()
                return preprocessing.pixels(to_bytes(upright(image), preprocessing.bits))
    except RefusedError:
        raise
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise RefusedError(415, f"image: of no accepted format; accepted: {kinds}") from error
    except MemoryError as error:
        raise RefusedError(413, "image: needs more memory than there is") from error
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise RefusedError(
            400, f"image: cannot be decoded ({first_sentence(error, 80)})"
        ) from error


def _check_size(image: Image.Image, limits: Limits) -> None:
    """Refuse an opened image by its header, before it is decoded."""
    count = image.width * image.height
    if count > limits.pixels:
        raise RefusedError(
            413,
            f"image: {image.width} x {image.height} pixels are more than the {limits.pixels:,} "
            "that are accepted",
        )
