"""How data sets are stored on disk as their authors publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.catalogue.entry import Layout
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.arrays import load_arrays
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.folders import is_image, load_folder
from robust_ood.data.sources.form import ImageForm
from robust_ood.data.storage import ExcludingStorage
from robust_ood.errors import UserError

_TINY_BYTES = 3 * 32 * 32  # of one of the 80 Million Tiny Images


def cifar(classes: int, train: bool) -> Layout:
    """CIFAR's pickled batches, which torchvision reads only with the published checksums."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        dataset = _torchvision(name, f"CIFAR{classes}", folder, train=train)
        labels = np.array(dataset.targets, np.int64)
        return ImageSet(name, dataset.data, labels, tuple(dataset.classes))

    return read


def svhn(split: str, per_class: int | None = None) -> Layout:
    """SVHN's MATLAB matrices; only the first `per_class` images of each class, in their order."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        dataset = _torchvision(name, "SVHN", folder, split=split)
        pixels = np.ascontiguousarray(dataset.data.transpose(0, 2, 3, 1))  # (N, H, W, 3)
        labels = dataset.labels.astype(np.int64)
        images = ImageSet(name, pixels, labels, tuple(map(str, range(10))))
        if per_class is None:
            return images
        return images.subset(first_of_each_class(dataset.labels, per_class))

    return read


def idx(kind: str, train: bool) -> Layout:
    """MNIST's and Fashion-MNIST's idx files: 28 x 28 grey images."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        dataset = _torchvision(name, kind, folder, train=train)
        images = dataset.data.numpy()[..., None]  # (N, 28, 28, 1)
        labels = dataset.targets.numpy().astype(np.int64)
        return ImageSet(name, images, labels, tuple(dataset.classes))

    return read


def traffic_signs(split: str) -> Layout:
    """GTSRB: class folders of `.ppm` files to train on, a CSV of labels for the test files."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        dataset = _torchvision(name, "GTSRB", folder, split=split)
        paths = [Path(path) for path, _ in dataset._samples]
        labels = np.array([label for _, label in dataset._samples])
        return ImageSet(name, _files(paths, form, name), labels)

    return read


def tree(sub: str, pattern: str = "**/*") -> Layout:
    """All images anywhere below a folder, without labels, in the order of their paths."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        paths = [path for path in sorted((folder / sub).glob(pattern)) if is_image(path)]
        if not paths:
            raise UserError(f"{name}: {folder / sub} holds no images")
        return ImageSet(name, _files(paths, form, name))

    return read


def class_folders(sub: str) -> Layout:
    """One folder for each class, in alphabetical order."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        return load_folder(folder / sub, _require_size(form, name), name)

    return read


def annotated(images: str, table: str) -> Layout:
    """A folder of images and a table of their names and classes (Tiny-ImageNet's validation)."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        rows = _read_rows(folder / table, name)
        classes = sorted({label for _, label in rows})
        labels = np.array([classes.index(label) for _, label in rows])
        paths = [folder / images / file for file, _ in rows]
        return ImageSet(name, _files(paths, form, name), labels, tuple(classes))

    return read


def partitioned(images: str, table: str, part: int) -> Layout:
    """A folder of images and a table of file names and the numbers of their parts (CelebA)."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        paths = []
        for file, number in _read_rows(folder / table, name):
            if not number.isdecimal():
                raise UserError(
                    f"{name}: {folder / table}: expected the number of a part for {file}, "
                    f"got {number!r}"
                )
            if int(number) == part:
                paths.append(folder / images / file)
        if not paths:
            raise UserError(f"{name}: {folder / table} lists no image of part {part}")
        return ImageSet(name, _files(paths, form, name))

    return read


def array(file: str) -> Layout:
    """One `.npy` array, memory-mapped."""

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        return load_arrays(folder / file, name)

    return read


def tiny_images(file: str, excluded: str) -> Layout:
    """80 Million Tiny Images, memory-mapped: 3,072 bytes an image, by channel and column.

    `excluded` lists the images that CIFAR was drawn from, one a line and counted from 1; 0 stands
    for none.
    """

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        size = (folder / file).stat().st_size
        if size == 0 or size % _TINY_BYTES:
            raise UserError(
                f"{name}: {folder / file} has {size} bytes, not a multiple of {_TINY_BYTES}; "
                "it is truncated"
            )
        if not (folder / excluded).is_file():
            raise UserError(
                f"{name}: {folder / excluded} is missing; without it CIFAR's own images would be "
                "outliers"
            )
        shape = (size // _TINY_BYTES, 3, 32, 32)  # (N, C, W, H)
        pixels = np.memmap(folder / file, np.uint8, "r", shape=shape).transpose(0, 3, 2, 1)
        numbers = _read_numbers(folder / excluded, name)
        indices = numbers[(numbers >= 1) & (numbers <= len(pixels))] - 1
        return ImageSet(name, ExcludingStorage(pixels, indices))

    return read


def first_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the indices of the first `count` images of each class, in ascending order."""
    firsts = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(firsts))


def _read_rows(path: Path, name: str) -> list[tuple[str, str]]:
    """Return the first two words of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot read {path} ({error})") from error
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise UserError(
                f"{name}: line {number} of {path}: expected two words or more, got {line!r}"
            )
        rows.append((words[0], words[1]))
    if not rows:
        raise UserError(f"{name}: {path} lists no images")
    return rows


def _read_numbers(path: Path, name: str) -> NDArray[np.int64]:
    try:
        return np.array(path.read_text(encoding="utf-8-sig").split(), np.int64)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: {path} is not a list of numbers ({error})") from error


def _torchvision(name: str, kind: str, folder: Path, **settings: Any) -> Any:
    """Return a torchvision data set; errors of its readers become one line."""
    from torchvision import datasets  # most experiments need none of it

    try:
        return getattr(datasets, kind)(str(folder), **settings)
    # Each of torchvision's readers raises what the library of its format raises.
    except Exception as error:
        reason = " ".join(str(error).split())
        reason = reason.removesuffix(" You can use download=True to download it")
        raise UserError(
            f"{name}: damaged or missing files in {folder} ({reason or type(error).__name__})"
        ) from error


def _files(paths: list[Path], form: ImageForm, name: str) -> ImageFiles:
    return ImageFiles(paths, _require_size(form, name), name)


def _require_size(form: ImageForm, name: str) -> ImageForm:
    if form.size is None:
        raise UserError(f"data.size: not given, and the images of {name} have many sizes")
    return form
