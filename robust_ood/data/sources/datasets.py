"""Any `torch.utils.data.Dataset` as a source of images, named by its class path."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import to_rgb
from robust_ood.data.sources.resize import Resize
from robust_ood.data.storage import UnreadableImagesError
from robust_ood.errors import UserError


def load_dataset(
    class_path: str, arguments: dict[str, Any], resize: Resize, name: str | None = None
) -> ImageSet:
    """Return the images, and the labels if it gives any, of a map-style data set.

    Args:
        class_path: importable path of the class, such as `torchvision.datasets.FakeData`. It is
            imported and called.
        arguments: keyword arguments that it is called with.
        resize: how the images become one size.
        name: what the set is called; the class's name by default.

    An item is an image, or a tuple that starts with an image and an integer label. An image is a
    Pillow image, a uint8 array `(H, W)` or `(H, W, 3)`, or a tensor `(1 or 3, H, W)`, uint8 or
    floats in [0, 1].

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
            f"{name or class_path}: cannot build {class_path} ({_one_line(error)})"
        ) from error
    name = name or attribute
    if count == 0:
        raise UserError(f"{name}: {class_path} holds no images")
    return ImageSet(name, DatasetImages(dataset, resize), _labels(dataset, count, name))


class DatasetImages:
    """A map-style data set as a storage: each item is read and resized when asked for."""

    def __init__(self, dataset: Any, resize: Resize) -> None:
        self.dataset = dataset
        self.resize = resize
        self.dtype = np.dtype(np.uint8)
        self.shape = (len(dataset), resize.size, resize.size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        indices = np.atleast_1d(np.asarray(indices))
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        positions: list[int] = []
        reasons: list[str] = []
        for position, index in enumerate(indices.tolist()):
            try:
                image = self.resize(_image(self.dataset[index]), index)
            except Exception as error:  # a user's data set may raise anything about this one item
                positions.append(position)
                reasons.append(f"item {index} ({type(error).__name__}: {_one_line(error)})")
            else:
                images[position] = np.asarray(image)
        if positions:
            raise UnreadableImagesError(positions, reasons)
        return images


def _image(item: Any) -> Image.Image:
    """Return the image of an item as 8-bit RGB."""
    image = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, torch.Tensor):
        image = image.numpy().transpose(1, 2, 0)  # (H, W, C)
        if image.shape[2] == 1:
            image = image[..., 0]  # (H, W)
    image = np.asarray(image)
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
    return Image.fromarray(image).convert("RGB")


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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
