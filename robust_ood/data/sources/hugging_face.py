"""Hugging Face data sets: Arrow files on disk, or a name of the hub.

The library maps Arrow files into memory, so every image has an index and nothing is read before it
is asked for. Images are decoded by `files.decode`, as those of a folder are.
"""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import EncodedImages
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError
from robust_ood.texts import one_line, printable

PREFIX = "hf:"
"""What a source of the hub starts with: `hf:uoft-cs/cifar10`."""
_MARKS = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` writes into the folder of a data set, or of its parts."""


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of the library has written a folder."""
    if not folder.is_dir():
        return False
    return any((folder / mark).is_file() for mark in _MARKS)


def load_saved(folder: Path, arguments: dict[str, Any], form: ImageForm, field: str) -> ImageSet:
    """Return the images and labels that `save_to_disk` has written into a folder.

    Args:
        folder: of one part (`photos/train`), not of all.
        arguments: `image` and `label`, the names of the columns, where they are not the only ones
            of their kind.
        form: what the images are brought to.
        field: the config field, for messages.

    Raises:
        UserError: the library is missing, or the folder is damaged or has no images.
    """
    library = _library(field)
    if (folder / "dataset_dict.json").is_file():
        parts = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
        raise UserError(
            f"data.{field}: {folder} holds several parts; expected one of "
            f"{', '.join(f'{folder.name}/{part}' for part in parts)}"
        )
    columns = dict(arguments)
    wanted = (columns.pop("image", None), columns.pop("label", None))
    if columns:
        raise UserError(
            f"data.{field}: arguments: expected image and label (names of columns), got "
            f"{', '.join(columns)}"
        )
    try:
        dataset = library.load_from_disk(str(folder))
    except IndexError as error:  # of a set without a single file of rows
        raise UserError(f"data.{field}: {folder} holds no images") from error
    except Exception as error:  # pyarrow and the library raise kinds of their own
        raise UserError(f"data.{field}: cannot read {folder} ({one_line(str(error))})") from error
    return _image_set(dataset, wanted, form, field, printable(folder.name))


def load_named(source: str, arguments: dict[str, Any], form: ImageForm, field: str) -> ImageSet:
    """Return the images and labels of a data set of the hub, or of files that its library reads.

    Args:
        source: `hf:` and a name, such as `hf:uoft-cs/cifar10` or `hf:parquet`.
        arguments: `image` and `label`, names of columns; the others are those of
            `datasets.load_dataset`, of which `split` is needed.
        form: what the images are brought to.
        field: the config field, for messages.

    Raises:
        UserError: the library is missing, it cannot read the data set, or there are no images.
    """
    library = _library(field)
    path = source.removeprefix(PREFIX)
    others = dict(arguments)
    wanted = (others.pop("image", None), others.pop("label", None))
    if others.get("streaming"):
        raise UserError(
            f"data.{field}: arguments: streaming: a stream has no index of its images; leave it "
            "out (Arrow files are mapped into memory, not read into it)"
        )
    if "split" not in others:
        raise UserError(f"data.{field}: arguments: expected a split, such as {{split: test}}")
    try:
        dataset = library.load_dataset(path, **others)
    except Exception as error:  # the hub, pyarrow and the library raise kinds of their own
        raise UserError(
            f"data.{field}: datasets cannot load {path!r} ({one_line(str(error))})"
        ) from error
    return _image_set(dataset, wanted, form, field, printable(path.rpartition("/")[2]))


class ArrowImages(EncodedImages):
    """A column of encoded images as a storage.

    Args:
        column: a data set of one column, whose items are not decoded.
        image: the name of that column.
        form: what the images are brought to.
        name: name of the set, for messages.
    """

    def __init__(self, column: Any, image: str, form: ImageForm, name: str) -> None:
        self.column = column
        self.image = image
        super().__init__(len(column), form, name)

    def encoded(self, index: int) -> Path | BytesIO:
        """Return the bytes of an image, or the file that the data set names."""
        item = self.column[index][self.image]
        if item is None or (item["bytes"] is None and item["path"] is None):
            raise ValueError("no image")
        if item["bytes"] is None:
            return Path(item["path"])
        return BytesIO(item["bytes"])

    def describe(self, index: int) -> str:
        """Return the row of an image."""
        return f"row {index}"


def _library(field: str) -> Any:
    try:
        return import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"data.{field}: Hugging Face data sets need the package datasets; "
            'pip install "robust-ood[streams]"'
        ) from error


def _image_set(
    dataset: Any, wanted: tuple[str | None, str | None], form: ImageForm, field: str, name: str
) -> ImageSet:
    """Return the set of a column of images and one of labels."""
    library = _library(field)
    if len(dataset) == 0:
        raise UserError(f"data.{field}: {name} holds no images")
    image = _column(dataset, "image", library.Image, wanted[0], field)
    if image is None:
        raise UserError(
            f"data.{field}: {name} has no column of images; it has "
            f"{', '.join(dataset.column_names)}"
        )
    column = dataset.select_columns([image])
    try:
        column = column.cast_column(image, library.Image(decode=False))
    except Exception as error:  # pyarrow's kinds, for a column that the user has named
        raise UserError(f"data.{field}: arguments: image: {image} does not hold images") from error
    images = ArrowImages(column, image, form, name)
    label = _column(dataset, "label", library.ClassLabel, wanted[1], field)
    if label is None:
        return ImageSet(name, images)
    class_names = getattr(dataset.features[label], "names", None) or ()
    labels = _labels(dataset, label, field)
    if (labels == -1).all():  # the library's mark of a test set without labels
        return ImageSet(name, images)
    return ImageSet(name, images, labels, tuple(class_names))


def _column(dataset: Any, role: str, kind: type, wanted: str | None, field: str) -> str | None:
    """Return the column that is asked for, or the only one of its kind; None where none is."""
    names = dataset.column_names
    if wanted is not None:
        if wanted not in names:
            raise UserError(
                f"data.{field}: arguments: {role}: expected one of {', '.join(names)}, got "
                f"{wanted!r}"
            )
        return wanted
    fitting = [name for name in names if isinstance(dataset.features[name], kind)]
    if len(fitting) > 1:
        raise UserError(
            f"data.{field}: several columns may be the {role}; give arguments: {role}: one of "
            f"{', '.join(fitting)}"
        )
    return fitting[0] if fitting else None


def _labels(dataset: Any, label: str, field: str) -> NDArray[np.int64]:
    listed = np.asarray(dataset.with_format(None)[label][:])
    if listed.dtype.kind not in "iu":
        raise UserError(f"data.{field}: arguments: label: {label} does not hold integers")
    return listed.astype(np.int64)
