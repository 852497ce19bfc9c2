"""Where image files and their labels are listed: folders of class folders, and image lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.files import SUFFIXES, Fit, ImageFiles
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError


def load_folder(folder: Path, fit: Fit, name: str | None = None) -> ImageSet:
    """Return the images of a folder; one class for each sub-folder, in alphabetical order, if it
    has any with images.

    Images anywhere below a class folder belong to it. Hidden files and those without an image's
    suffix are passed over.

    Raises:
        UserError: no such folder, no image in it, or images both beside and inside class folders.
    """
    name = name or folder.name
    if not folder.is_dir():
        raise UserError(f"{name}: no such folder: {folder}")
    loose = [path for path in sorted(folder.iterdir()) if is_image(path)]
    classes = {
        child.name: _images_below(child) for child in sorted(folder.iterdir()) if _is_class(child)
    }
    classes = {label: paths for label, paths in classes.items() if paths}
    if loose and classes:
        raise UserError(
            f"{name}: {folder} holds images both beside class folders ({loose[0].name}) and inside them "
            f"({next(iter(classes))}/); one of the two is wanted"
        )
    if not loose and not classes:
        raise UserError(
            f"{name}: {folder} holds no images; known suffixes: {', '.join(sorted(SUFFIXES))}"
        )
    if loose:
        return ImageSet(name, ImageFiles(loose, fit, name))
    paths = [path for members in classes.values() for path in members]
    labels = np.repeat(np.arange(len(classes)), [len(members) for members in classes.values()])
    return ImageSet(name, ImageFiles(paths, fit, name), labels, tuple(classes))


def load_list(file: Path, base: Path | None, fit: Fit, name: str | None = None) -> ImageSet:
    """Return the images that a list names, one a line: a path, and optionally a label (OpenOOD's
    image lists).

    Args:
        file: the list. Empty lines and lines that start with `#` are passed over. Labels that are
            all -1 mean none.
        base: the folder that the paths are relative to. By default the nearest folder above the
            list, or its `images_classic` or `images_largescale` (OpenOOD's layout), in which the
            first image is found.
        fit: how the images become one size.
        name: what the set is called; the list's stem by default.

    Raises:
        UserError: no list, no line in it, some lines with a label and some without, or no image
            where it is looked for.
    """
    name = name or file.stem
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot read the image list {file} ({error})") from error
    entries = [_entry(line) for line in lines if line and not line.startswith("#")]
    if not entries:
        raise UserError(f"{name}: the image list {file} names no images")
    labelled = [label for _, label in entries if label is not None]
    if len(labelled) not in (0, len(entries)):
        raise UserError(
            f"{name}: {len(labelled)} of the {len(entries)} lines of {file} have a label; all or none must"
        )
    base = base or _base_of(file, entries[0][0], name)
    labels: NDArray[np.int64] | None = np.array(labelled, np.int64)
    if not labelled or set(labelled) == {-1}:
        labels = None
    return ImageSet(name, ImageFiles([base / path for path, _ in entries], fit, name), labels)


def is_image(path: Path) -> bool:
    """Return whether a path is a file with an image's suffix, not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _images_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if is_image(path)]


def _entry(line: str) -> tuple[str, int | None]:
    path, _, last = line.rpartition(" ")
    try:
        return path.strip(), int(last)
    except ValueError:
        return line, None


def _base_of(file: Path, first: str, name: str) -> Path:
    for folder in file.resolve().parents:
        for base in (folder, folder / "images_classic", folder / "images_largescale"):
            if (base / first).is_file():
                return base
    raise UserError(
        f"{name}: {first}, the first image of {file}, is not below the list's folders; name its `base`"
    )
