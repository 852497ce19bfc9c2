"""Any `torch.utils.data.Dataset` as a source of images, named by its class path."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import ValueRange, to_bytes
from robust_ood.data.sources.form import ImageForm
from robust_ood.data.storage import UnreadableImagesError
from robust_ood.errors import Notice, UserError
from robust_ood.texts import one_line

_READ_TWICE = 4  # items that are read twice, to see whether they are drawn
_SAMPLE = 8  # how many items are inspected beforehand for the range of 16-bit values


def load_dataset(
    class_path: str,
    arguments: dict[str, Any],
    form: ImageForm,
    name: str | None = None,
    kept: bool = True,
) -> ImageSet:
    """Return the images, and the labels if it gives any, of a map-style data set.

    Args:
        class_path: importable path of the class, such as `torchvision.datasets.FakeData`. It is
            imported and called.
        arguments: keyword arguments that it is called with.
        form: what the images are brought to.
        name: what the set is called; the class's name by default.
        kept: warn where an item is another image at each read, of which the first is kept.

    An item is an image, or a tuple that starts with an image and an integer label. An image is a
    Pillow image, or an array or a tensor `(H, W)`, `(H, W, C)` or `(C, H, W)` with C = 1 or 3,
    uint8 or floats in [0, 1]. What could be both of the latter is read as `(C, H, W)` if it is a
    tensor, and else as `(H, W, C)`.

    Raises:
        UserError: the class cannot be imported or its constructor fails, or the items are of
            another kind.
    """
    module, _, attribute = class_path.rpartition(".")
    try:
        dataset = getattr(import_module(module), attribute)(**arguments)
        count = len(dataset)
    except Exception as error:
        raise UserError(
            f"{name or class_path}: cannot build {class_path} ({one_line(str(error))})"
        ) from error
    name = name or attribute
    if count == 0:
        raise UserError(f"{name}: {class_path} holds no images")
    images = DatasetImages(dataset, form)
    _warn_of_unused_bits(images, name)
    if kept:
        _warn_of_draws(images, name)
    return ImageSet(name, images, _labels(dataset, count, name))


class DatasetImages:
    """A map-style data set as a storage: each item is read and brought to a form when asked for."""

    draws = True
    """Whether an item may be another image at each read; see `draws.keyed`."""

    def __init__(self, dataset: Any, form: ImageForm) -> None:
        self.dataset = dataset
        self.form = form
        self.dtype = np.dtype(np.uint8)
        self.shape = (len(dataset), *form.sides, form.channels)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        indices = np.atleast_1d(np.asarray(indices))
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        positions: list[int] = []
        reasons: list[str] = []
        for position, index in enumerate(indices.tolist()):
            try:
                image = _image(self.dataset[index], self.form.bits)
                images[position] = self.form.pixels(image, index)
            except Exception as error:  # a user's data set may raise anything about this one item
                positions.append(position)
                reasons.append(f"item {index} ({type(error).__name__}: {one_line(str(error))})")
        if positions:
            raise UnreadableImagesError(positions, reasons)
        return images


def _image(item: Any, bits: int | None) -> Image.Image:
    """Return the image of an item with 8 bits a channel."""
    image = _first(item)
    if isinstance(image, Image.Image):
        return to_bytes(image, bits)
    tensor = isinstance(image, torch.Tensor)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    image = _channels_last(np.asarray(image), first=tensor)
    if np.issubdtype(image.dtype, np.floating):
        low = image.min()
        high = image.max()
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ValueError(
                f"expected floats in [0, 1] without normalisation, got {low:g}..{high:g}"
            )
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"expected uint8 or floats in [0, 1], got dtype {image.dtype}")
    return to_bytes(Image.fromarray(image))


def _first(item: Any) -> Any:
    return item[0] if isinstance(item, (tuple, list)) else item


def _channels_last(image: NDArray[Any], *, first: bool) -> NDArray[Any]:
    """Return an image as `(H, W)` where it is grey, and else as `(H, W, C)`.

    first: how to read what has 1 or 3 both as its first and as its last length.
    """
    if image.ndim == 3:
        starts = image.shape[0] in (1, 3)
        ends = image.shape[2] in (1, 3, 4)
        if starts and (first or not ends):
            image = image.transpose(1, 2, 0)
        if image.shape[2] == 1:
            image = image[..., 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] in (3, 4)):
        raise ValueError(f"expected shape (H, W), (H, W, C) or (C, H, W), got {image.shape}")
    return np.ascontiguousarray(image)


def _warn_of_unused_bits(images: DatasetImages, name: str) -> None:
    """Warn where 16-bit Pillow images use only a part of their range, looking at a few."""
    values = ValueRange()
    sample = np.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).astype(int)
    for index in sample.tolist():
        try:
            image = _first(images.dataset[index])
            if not isinstance(image, Image.Image) or not image.mode.startswith("I"):
                return
            values.include(image)
        except Exception:  # reported when it is read
            continue
    if values.largest is not None:
        warnings.warn(f"{name}: converted to 8 bits{values.advice(images.form.bits)}", stacklevel=3)


def _warn_of_draws(images: DatasetImages, name: str) -> None:
    """Warn where reading an item twice gives two images, looking at a few items."""
    for index in range(min(len(images), _READ_TWICE)):
        try:
            first = images[[index]]
            second = images[[index]]
        except UnreadableImagesError:  # reported when it is read
            continue
        if not np.array_equal(first, second):
            warnings.warn(
                f"{name}: item {index} is another image each time it is read, and the images that "
                "fit into memory are read once; cache: false reads them each time",
                Notice,
                stacklevel=3,
            )
            return


def _labels(dataset: Any, count: int, name: str) -> NDArray[np.int64] | None:
    """Return the labels that a data set lists or that its items have; None where it has none."""
    listed = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if listed is None:
        first = dataset[0]
        if not isinstance(first, (tuple, list)) or len(first) < 2:
            return None
        listed = [dataset[index][1] for index in range(count)]
    try:
        labels = np.asarray(listed)
        if labels.dtype.kind not in "iu" or labels.shape != (count,):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"{name}: its labels are not one integer for each of the {count} images"
        ) from error
    return None if (labels == -1).all() else labels.astype(np.int64)
