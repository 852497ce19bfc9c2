"""Folders of images, and folders of class folders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import SUFFIXES, ImageFiles
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError
from robust_ood.texts import printable


def load_folder(folder: Path, form: ImageForm, name: str | None = None) -> ImageSet:
    """Return the images of a folder; subfolders with images are classes, in alphabetical order.

    Images anywhere below a class folder belong to it. Hidden files and files without an image
    suffix are ignored. One warning says where links bring the same images into two classes.

    Args:
        folder: the folder.
        form: what the images are brought to.
        name: what the set is called; the folder's name by default.

    Raises:
        UserError: the folder does not exist or holds no image, or holds images both beside and
            inside class folders.
    """
    folder = Path(folder)
    name = name or printable(folder.name)
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder: {folder}")
    loose = [path for path in sorted(folder.iterdir()) if is_image(path)]
    classes = _class_folders(folder, name)
    if loose and classes:
        raise UserError(
            f"{name}: {folder} holds images both beside class folders ({loose[0].name}) and "
            f"inside them ({next(iter(classes))}/); expected one of the two"
        )
    if loose:
        return ImageSet(name, ImageFiles(loose, form, name))
    if not classes:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{name}: {folder} holds no images; known suffixes: {suffixes}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, members in enumerate(classes.values()):
        paths += members
        labels += [label] * len(members)
    return ImageSet(name, ImageFiles(paths, form, name), np.array(labels), tuple(classes))


def is_image(path: Path) -> bool:
    """Return whether a path is a file with an image suffix that is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _class_folders(folder: Path, name: str) -> dict[str, list[Path]]:
    """Return the images of each subfolder that has any, by the subfolder's name.

    name: of the set, for the warning about images of two classes.
    """
    classes = {}
    class_of: dict[str, str] = {}  # by the real path of a folder that holds images
    for child in _subfolders(folder):
        images = []
        for path in _files_below(child):
            if is_image(path):
                images.append(path)
        if not images:
            continue
        class_name = printable(child.name)
        classes[class_name] = sorted(images)
        for real in {os.path.realpath(parent) for parent in {path.parent for path in images}}:
            other = class_of.setdefault(real, class_name)
            if other != class_name:
                warnings.warn(
                    f"{name}: the class folders {other}/ and {class_name}/ hold the same images "
                    f"(by a link to {printable(real)}), so these count twice, under two labels",
                    stacklevel=3,
                )
    return classes


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders that hold images, in the order of their labels."""
    names = []
    for child in _subfolders(folder):
        if any(is_image(path) for path in _files_below(child)):
            names.append(printable(child.name))
    return tuple(names)


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, in alphabetical order."""
    subfolders = []
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            subfolders.append(child)
    return subfolders


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, also below linked folders; each folder once."""
    seen = set()
    for place, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link to a folder above it
            subfolders.clear()
            continue
        seen.add(real)
        for name in names:
            yield Path(place, name)
