"""Folders of images, and folders of class folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import SUFFIXES, ImageFiles
from robust_ood.data.sources.resize import Resize
from robust_ood.errors import UserError


def load_folder(folder: Path, resize: Resize, name: str | None = None) -> ImageSet:
    """Return the images of a folder; subfolders with images are classes, in alphabetical order.

    Images anywhere below a class folder belong to it. Hidden files and files without an image
    suffix are ignored.

    Args:
        folder: the folder.
        resize: how the images become one size.
        name: what the set is called; the folder's name by default.

    Raises:
        UserError: the folder does not exist or holds no image, or holds images both beside and
            inside class folders.
    """
    name = name or folder.name
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder: {folder}")
    loose = [path for path in sorted(folder.iterdir()) if is_image(path)]
    classes = _class_folders(folder)
    if loose and classes:
        raise UserError(
            f"{name}: {folder} holds images both beside class folders ({loose[0].name}) and "
            f"inside them ({next(iter(classes))}/); expected one of the two"
        )
    if loose:
        return ImageSet(name, ImageFiles(loose, resize, name))
    if not classes:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{name}: {folder} holds no images; known suffixes: {suffixes}")
    paths: list[Path] = []
    labels: list[int] = []
    for label, members in enumerate(classes.values()):
        paths += members
        labels += [label] * len(members)
    return ImageSet(name, ImageFiles(paths, resize, name), np.array(labels), tuple(classes))


def is_image(path: Path) -> bool:
    """Return whether a path is a file with an image suffix that is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each subfolder that has any, by the subfolder's name."""
    classes = {}
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or not child.is_dir():
            continue
        images = sorted(path for path in _files_below(child) if is_image(path))
        if images:
            classes[child.name] = images
    return classes


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders that hold images, in the order of their labels."""
    names = []
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or not child.is_dir():
            continue
        if any(is_image(path) for path in _files_below(child)):
            names.append(child.name)
    return tuple(names)


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
