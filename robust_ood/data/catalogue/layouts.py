"""How data sets lie on disk as their authors publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.data import folders
from robust_ood.data.arrays import load_arrays
from robust_ood.data.catalogue.entry import Layout
from robust_ood.data.files import Fit, ImageFiles
from robust_ood.data.sets import Excluded, ImageSet
from robust_ood.errors import UserError


def cifar(classes: int, train: bool) -> Layout:
    """CIFAR's pickled batches, which torchvision reads only if their checksums are the published
    ones.
    """

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        found = _torchvision(name, f"CIFAR{classes}", folder, train=train)
        return ImageSet(name, found.data, np.array(found.targets, np.int64), tuple(found.classes))

    return read


def svhn(split: str, per_class: int | None = None) -> Layout:
    """SVHN's MATLAB matrices; of each class only the first `per_class` images, in their order."""

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        found = _torchvision(name, "SVHN", folder, split=split)
        images = np.ascontiguousarray(found.data.transpose(0, 2, 3, 1))  # (N, H, W, 3)
        result = ImageSet(name, images, found.labels.astype(np.int64), tuple(map(str, range(10))))
        return (
            result
            if per_class is None
            else result.subset(first_of_each_class(found.labels, per_class))
        )

    return read


def idx(kind: str, train: bool) -> Layout:
    """MNIST's and Fashion-MNIST's idx files: 28 x 28 grey images, repeated over three channels."""

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        found = _torchvision(name, kind, folder, train=train)
        images = found.data.numpy()[..., None].repeat(3, -1)  # (N, 28, 28, 3)
        return ImageSet(name, images, found.targets.numpy().astype(np.int64), tuple(found.classes))

    return read


def traffic_signs(split: str) -> Layout:
    """GTSRB: class folders of `.ppm` files to train on, a CSV of labels for the test files."""

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        found = _torchvision(name, "GTSRB", folder, split=split)
        paths, labels = zip(*found._samples, strict=True)
        return ImageSet(
            name,
            ImageFiles([Path(path) for path in paths], _given(fit, name), name),
            np.array(labels),
        )

    return read


def tree(sub: str, pattern: str = "**/*") -> Layout:
    """All images anywhere below a folder, without labels, in the order of their paths."""

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        paths = [path for path in sorted((folder / sub).glob(pattern)) if folders.is_image(path)]
        if not paths:
            raise UserError(f"{name}: {folder / sub} holds no images")
        return ImageSet(name, ImageFiles(paths, _given(fit, name), name))

    return read


def class_folders(sub: str) -> Layout:
    """One folder for each class, in alphabetical order."""

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        return folders.load_folder(folder / sub, _given(fit, name), name)

    return read


def annotated(images: str, table: str) -> Layout:
    """A folder of images and a table whose rows are a file name and its class (Tiny-ImageNet's
    validation part).
    """

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        rows = _rows(folder / table, name)
        classes = sorted({label for _, label in rows})
        labels = np.array([classes.index(label) for _, label in rows])
        paths = [folder / images / file for file, _ in rows]
        return ImageSet(name, ImageFiles(paths, _given(fit, name), name), labels, tuple(classes))

    return read


def partitioned(images: str, table: str, part: int) -> Layout:
    """A folder of images and a table whose rows are a file name and the number of its part
    (CelebA).
    """

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        rows = _rows(folder / table, name)
        for file, number in rows:
            if not number.isdecimal():
                raise UserError(
                    f"{name}: {folder / table} has part {number!r} for {file}; accepted: numbers"
                )
        paths = [folder / images / file for file, number in rows if int(number) == part]
        if not paths:
            raise UserError(f"{name}: {folder / table} lists no image of part {part}")
        return ImageSet(name, ImageFiles(paths, _given(fit, name), name))

    return read


def array(file: str) -> Layout:
    """One `.npy` array, memory-mapped."""
    return lambda folder, fit, name: load_arrays(folder / file, name)


def tiny_images(file: str, excluded: str) -> Layout:
    """80 Million Tiny Images: 3,072 bytes an image, column by column and channel by channel,
    memory-mapped.

    `excluded` lists the images that CIFAR was drawn from, one a line and counted from 1; 0 stands
    for none.
    """

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        size = (folder / file).stat().st_size
        if size == 0 or size % 3072:
            raise UserError(
                f"{name}: {folder / file} has {size} bytes, which is no multiple of 3072; it is truncated"
            )
        if not (folder / excluded).is_file():
            raise UserError(
                f"{name}: {folder / excluded} is missing; without it CIFAR's own images would be outliers"
            )
        raw = np.memmap(
            folder / file, np.uint8, "r", shape=(size // 3072, 3, 32, 32)
        )  # (N, C, W, H)
        listed = _numbers(folder / excluded, name)
        inside = listed[(listed >= 1) & (listed <= len(raw))] - 1
        return ImageSet(name, Excluded(raw.transpose(0, 3, 2, 1), inside))

    return read


def first_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the indices of the first `count` images of each class, in ascending order."""
    return np.sort(
        np.concatenate([np.flatnonzero(labels == label)[:count] for label in np.unique(labels)])
    )


def _rows(path: Path, name: str) -> list[tuple[str, str]]:
    """Return the first two words of each line that is not blank."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot read {path} ({error})") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, words in rows:
        if len(words) < 2:
            raise UserError(
                f"{name}: line {number} of {path} is {lines[number - 1]!r}; accepted: two words or more"
            )
    if not rows:
        raise UserError(f"{name}: {path} lists no images")
    return [(words[0], words[1]) for _, words in rows]


def _numbers(path: Path, name: str) -> NDArray[np.int64]:
    try:
        return np.array(path.read_text().split(), np.int64)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: {path} is no list of numbers ({error})") from error


def _torchvision(name: str, kind: str, folder: Path, **settings: Any) -> Any:
    """Return a torchvision data set; turn its complaints, and those of its readers, into one
    line.
    """
    from torchvision import datasets  # most experiments need none of it

    try:
        return getattr(datasets, kind)(str(folder), **settings)
    except (
        Exception
    ) as error:  # each of torchvision's readers raises what its format's library raises
        reason = " ".join(str(error).split()).removesuffix(
            " You can use download=True to download it"
        )
        raise UserError(
            f"{name}: damaged or missing files in {folder} ({reason or type(error).__name__})"
        ) from error


def _given(fit: Fit | None, name: str) -> Fit:
    if fit is None:
        raise UserError(f"data.size: not given, and the images of {name} come in many sizes")
    return fit
