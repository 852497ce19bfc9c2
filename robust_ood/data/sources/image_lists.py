"""Image lists: text files that name images, and optionally their labels (OpenOOD's format)."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

import numpy as np

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError
from robust_ood.texts import printable

_LABELLED = re.compile(r"(.+?)(?:\s*,\s*|\s+)([+-]?\d+)")
"""A path and its label, with a comma, a tab or spaces between; the path may hold any of them."""


def load_list(file: Path, base: Path | None, form: ImageForm, name: str | None = None) -> ImageSet:
    """Return the images that a list names, one a line: a path, and optionally a label.

    Args:
        file: the list. A comma, a tab or spaces are between path and label; a path may be in double
            quotes. Empty lines and lines that start with `#` are ignored. Labels that are all -1
            mean that the set has none. Names need not be UTF-8.
        base: the folder that the paths are relative to. By default the nearest folder above the
            list, or its `images_classic` or `images_largescale` (OpenOOD's layout), that contains
            the first image.
        form: what the images are brought to.
        name: what the set is called; the list's stem by default.

    Raises:
        UserError: the list does not exist or names no images, some lines have a label and others
            have none, or the first image is not found.
    """
    file = Path(file)
    name = name or printable(file.stem)
    paths, labels = _read_lines(file, name)
    if not paths:
        raise UserError(f"{name}: the image list {file} names no images")
    if labels and len(labels) != len(paths):
        raise UserError(
            f"{name}: {len(labels)} of the {len(paths)} lines of {file} have a label; "
            "expected all or none"
        )
    base = base or _find_base(file, paths[0], name)
    images = ImageFiles([base / path for path in paths], form, name)
    if set(labels) <= {-1}:
        return ImageSet(name, images)
    return ImageSet(name, images, np.array(labels, np.int64))


def _read_lines(file: Path, name: str) -> tuple[list[str], list[int]]:
    """Return the paths of a list, and the labels of those lines that have one."""
    paths: list[str] = []
    labels: list[int] = []
    for line in _read_text(file, name).replace("\r", "\n").split("\n"):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        path, label = _split_line(line)
        paths.append(path)
        if label is not None:
            labels.append(label)
    return paths, labels


def _read_text(file: Path, name: str) -> str:
    """Return a list's text, decoded as the system decodes the names of files, whatever they are."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{name}: cannot read the image list {file} ({error.strerror or error})"
        ) from error
    if b"\0" in content:  # UTF-16, which starts with a mark of its own, or no text at all
        raise UserError(
            f"{name}: cannot read the image list {file} (it is no text, or UTF-16); expected UTF-8"
        )
    return os.fsdecode(content.removeprefix(codecs.BOM_UTF8))


def _split_line(line: str) -> tuple[str, int | None]:
    """Return the path and the label of a line; None where its last word is no integer."""
    label = None
    labelled = _LABELLED.fullmatch(line)
    if labelled is not None:
        line = labelled[1]
        label = int(labelled[2])
    if len(line) > 2 and line[0] == line[-1] == '"':
        line = line[1:-1]
    return line, label


def _find_base(file: Path, first: str, name: str) -> Path:
    for folder in file.resolve().parents:
        for base in (folder, folder / "images_classic", folder / "images_largescale"):
            if (base / first).is_file():
                return base
    raise UserError(
        f"{name}: {printable(first)}, the first image of {file}, is not in any folder above the "
        "list; give the list's `base`"
    )
