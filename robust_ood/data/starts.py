"""Images that an attack on encoders starts from: drawn ones, one picture, or another set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robust_ood.data.named import EMBEDDED, find_in_catalogue, find_path, load_set
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.folders import is_image
from robust_ood.data.sources.form import Channels
from robust_ood.data.sources.spec import SetSource, SetSpec, located, read_set
from robust_ood.data.sources.synthetic import spirals, uniform
from robust_ood.errors import UserError, nearest
from robust_ood.randomness import generator

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""


def _noise(shape: Shape, source: torch.Generator) -> Tensor:
    return uniform(1, max(shape[1:]), source)[0]


def _spiral(shape: Shape, source: torch.Generator) -> Tensor:
    return spirals(1, max(shape[1:]), source)[0]


def _checkerboard(shape: Shape, source: torch.Generator) -> Tensor:
    """Two by two fields of two colours, as in the OOD-attack paper, Fig. 6."""
    side = max(shape[1:])
    colours = torch.rand((2, 3), generator=source)
    half = (torch.arange(side) * 2 // side).long()  # (side,), 0 or 1
    fields = (half[:, None] + half[None, :]) % 2  # (side, side)
    return colours[fields]


def _grey(shape: Shape, source: torch.Generator) -> Tensor:
    side = max(shape[1:])
    return torch.full((side, side, 3), 0.5)


DRAWN: dict[str, Callable[[Shape, torch.Generator], Tensor]] = {
    "noise": _noise,
    "spirals": _spiral,
    "checkerboard": _checkerboard,
    "grey": _grey,
}
"""Start images that are drawn at the size of the inliers, `(side, side, 3)` in [0, 1], by name."""


class DrawnImages:
    """Drawn images as a storage: each has a generator of its own, whatever their number.

    Args:
        kind: a name of `DRAWN`.
        count: how many.
        shape: channels, height and width.
        seed: of the draws.
    """

    def __init__(self, kind: str, count: int, shape: Shape, seed: int) -> None:
        self.kind = kind
        self.input_shape = shape
        self.seed = seed
        channels, height, width = shape
        self.shape = (count, height, width, channels)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        chosen = np.arange(len(self))[indices]
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for place, index in enumerate(chosen.tolist()):
            images[place] = self._draw(index)
        return images

    def _draw(self, index: int) -> NDArray[np.uint8]:
        source = generator(self.seed, "encoder attack", self.kind, index)
        _, height, width, channels = self.shape
        pixels = DRAWN[self.kind](self.input_shape, source)[:height, :width]  # (H, W, 3)
        if channels == 1:
            pixels = pixels.mean(2, keepdim=True)
        drawn: NDArray[np.uint8] = pixels.mul(255).round().to(torch.uint8).numpy()
        return drawn


class RepeatedImage:
    """One image as a storage of many.

    Args:
        image: `uint8 (H, W, C)`.
        count: how many.
    """

    def __init__(self, image: NDArray[np.uint8], count: int) -> None:
        self.image = image
        self.shape = (count, *image.shape)
        self.dtype = image.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        count = len(np.arange(len(self))[indices])
        return np.repeat(self.image[None], count, axis=0)


def load_starts(
    spec: SetSource,
    root: Path,
    inliers: ImageSet,
    count: int,
    *,
    size: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Return one start image for each of `count` inliers.

    Args:
        spec: a name of `DRAWN`, the path of a picture, which all pairs start from, or a set as
            `load_set` reads it.
        root: folder of the data.
        inliers: what the starts are paired with, for the form of the images.
        count: of pairs.
        size: of images that state none of their own, as `data.size`.
        seed: of drawn images.

    Raises:
        UserError: no such name, picture or set; images of another size; fewer images than pairs.
    """
    read = read_set("starts", spec)
    name = read if isinstance(read, str) else read.source
    if name in DRAWN:
        label = name if isinstance(read, str) else read.name or name
        return ImageSet(label, DrawnImages(name, count, inliers.input_shape, seed))
    _require_known(name, root)
    images = _load(read, root, inliers, size)
    if images.input_shape != inliers.input_shape:
        raise UserError(
            f"starts: images of {images.name} are {_shape(images)}, those of {inliers.name} "
            f"{_shape(inliers)}; give {{source: {name}, size: {inliers.image_shape[0]}}} to make "
            "them equal"
        )
    if len(images) == 1:
        pixels = images.read(torch.zeros(1, dtype=torch.long)).permute(0, 2, 3, 1).numpy()
        return ImageSet(images.name, RepeatedImage(pixels[0], count))
    if len(images) < count:
        raise UserError(
            f"starts: {images.name} has {len(images)} images for {count} pairs; expected one, or "
            "one for each pair (--limit says how many pairs)"
        )
    return images.subset(np.arange(count))


def _load(spec: str | SetSpec, root: Path, inliers: ImageSet, size: int | None) -> ImageSet:
    channels: Channels = 1 if inliers.channels == 1 else 3
    if size is None and isinstance(spec, str) and _fits(located(root, spec), inliers):
        size = inliers.image_shape[0]
    try:
        return load_set(spec, root, "starts", size, channels=channels)
    except UserError as error:
        # `load_set` reads fields of `data`; this one is the command's own.
        words = str(error).replace("data.starts", "starts")
        words = words.replace("data.size: not given, and", "starts: no size is given, and")
        raise UserError(words) from error


def _fits(path: Path, inliers: ImageSet) -> bool:
    """Return whether a file is a picture of the inliers' size, which then needs no other."""
    if not is_image(path):
        return False
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except OSError:
        return False  # it is reported when it is read
    return width == height and (height, width) == inliers.image_shape


def _require_known(name: str, root: Path) -> None:
    """Refuse what is neither a drawn kind, nor a set, nor a path, with the nearest drawn kind."""
    if name in EMBEDDED or find_in_catalogue(name, root, "starts") is not None:
        return
    if find_path(located(root, name)) is not None or "." in name or "/" in name:
        return  # `load_set` says what is wrong with a path
    near = nearest(name, DRAWN)
    hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(
        f"starts: unknown start {name!r}{hint}; accepted: {', '.join(DRAWN)}, the path of a "
        "picture, or a set"
    )


def _shape(images: ImageSet) -> str:
    channels, height, width = images.input_shape
    return f"{height} x {width} with {channels} channel(s)"
