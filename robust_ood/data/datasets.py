"""Any `torch.utils.data.Dataset` as a source of images, named by its class path."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from robust_ood.data.files import Fit, to_rgb
from robust_ood.data.sets import ImageSet, UnreadableImagesError
from robust_ood.errors import UserError


def load_dataset(
    class_path: str, arguments: dict[str, Any], fit: Fit, name: str | None = None
) -> ImageSet:
    """Return the images, and the labels if it gives any, of a map-style data set.

    Args:
        class_path: importable path of the class, such as `torchvision.datasets.FakeData`. It is
            imported and called.
        arguments: what it is called with.
        fit: how the images become one size.
        name: what the set is called; the class's name by default.

    An item is an image or a tuple that starts with an image and an integer label. An image is a
    Pillow image, a uint8 array `(H, W)` or `(H, W, 3)`, or a tensor `(1 or 3, H, W)`, uint8 or
    floats in [0, 1].

    Raises:
        UserError: nothing importable by that path, a constructor that fails, or items of another
            kind.
    """
    module, _, attribute = class_path.rpartition(".")
    try:
        dataset = getattr(import_module(module), attribute)(**arguments)
        count = len(dataset)
    except Exception as error:
        raise UserError(
            f"{name or class_path}: cannot build {class_path} ({' '.join(str(error).split())})"
        ) from error
    name = name or attribute
    if count == 0:
        raise UserError(f"{name}: {class_path} holds no images")
    return ImageSet(name, DatasetImages(dataset, fit), _labels(dataset, count, name))


class DatasetImages:
    """A map-style data set as a storage: indexed like an array, items are asked for when they are
    needed.
    """

    def __init__(self, dataset: Any, fit: Fit) -> None:
        self.dataset, self.fit = dataset, fit
        self.dtype, self.shape = np.dtype(np.uint8), (len(dataset), fit.size, fit.size, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        wanted = np.atleast_1d(np.asarray(indices))
        images = np.empty((len(wanted), *self.shape[1:]), np.uint8)
        places, reasons = [], []
        for place, index in enumerate(wanted.tolist()):
            try:
                images[place] = np.asarray(self.fit(_image(self.dataset[index]), index))
            except (
                Exception
            ) as error:  # whatever somebody else's data set raises is about this one item
                places.append(place)
                reasons.append(
                    f"item {index} ({type(error).__name__}: {' '.join(str(error).split())})"
                )
        if places:
            raise UnreadableImagesError(places, reasons)
        return images


def _image(item: Any) -> Image.Image:
    image = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, torch.Tensor):
        image = image.numpy().transpose(1, 2, 0)  # (H, W, C)
        if image.shape[2] == 1:
            image = image[..., 0]
    image = np.asarray(image)
    if np.issubdtype(image.dtype, np.floating):
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(
                f"floats in {image.min():g}..{image.max():g}; [0, 1] is wanted, without normalisation"
            )
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"dtype {image.dtype}; uint8 or floats in [0, 1] are wanted")
    return Image.fromarray(image).convert("RGB")


def _labels(dataset: Any, count: int, name: str) -> NDArray[np.int64] | None:
    """Return a data set's list of labels where it keeps one, or its items' own; None where an item
    is only an image.
    """
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if labels is None:
        first = dataset[0]
        if not isinstance(first, (tuple, list)) or len(first) < 2:
            return None
        labels = [dataset[index][1] for index in range(count)]
    try:
        found = np.asarray(labels)
        if found.dtype.kind not in "iu" or found.shape != (count,):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"{name}: its labels are not one integer for each of the {count} images"
        ) from error
    return None if (found == -1).all() else found.astype(np.int64)
