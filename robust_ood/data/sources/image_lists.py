"""Image lists: text files that name images, and optionally their labels (OpenOOD's format)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.resize import Resize
from robust_ood.errors import UserError


def load_list(file: Path, base: Path | None, resize: Resize, name: str | None = None) -> ImageSet:
    """Return the images that a list names, one a line: a path, and optionally a label.

    Args:
        file: the list. Empty lines and lines that start with `#` are ignored. Labels that are all
            -1 mean that the set has none.
        base: the folder that the paths are relative to. By default the nearest folder above the
            list, or its `images_classic` or `images_largescale` (OpenOOD's layout), that contains
            the first image.
        resize: how the images become one size.
        name: what the set is called; the list's stem by default.

    Raises:
        UserError: the list does not exist or names no images, some lines have a label and others
            have none, or the first image is not found.
    """
    name = name or file.stem
    paths, labels = _read_lines(file, name)
    if not paths:
        raise UserError(f"{name}: the image list {file} names no images")
    if labels and len(labels) != len(paths):
        raise UserError(
            f"{name}: {len(labels)} of the {len(paths)} lines of {file} have a label; "
            "expected all or none"
        )
    base = base or _find_base(file, paths[0], name)
    images = ImageFiles([base / path for path in paths], resize, name)
    if set(labels) <= {-1}:
        return ImageSet(name, images)
    return ImageSet(name, images, np.array(labels, np.int64))


def _read_lines(file: Path, name: str) -> tuple[list[str], list[int]]:
    """Return the paths of a list, and the labels of those lines that have one."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot read the image list {file} ({error})") from error
    paths: list[str] = []
    labels: list[int] = []
    for line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        path, label = _split_line(line)
        paths.append(path)
        if label is not None:
            labels.append(label)
    return paths, labels


def _split_line(line: str) -> tuple[str, int | None]:
    """Return the path and the label of a line; None where its last word is no integer."""
    path, _, last = line.rpartition(" ")
    try:
        return path.strip(), int(last)
    except ValueError:
        return line, None


def _find_base(file: Path, first: str, name: str) -> Path:
    for folder in file.resolve().parents:
        for base in (folder, folder / "images_classic", folder / "images_largescale"):
            if (base / first).is_file():
                return base
    raise UserError(
        f"{name}: {first}, the first image of {file}, is not in any folder above the list; "
        "give the list's `base`"
    )
