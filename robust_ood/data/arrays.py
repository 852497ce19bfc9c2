"""Image arrays on disk: `.npz` with `images` (and `labels`, `class_names`), and bare `.npy`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError

SUFFIXES = (".npz", ".npy")


def load_arrays(path: Path, name: str | None = None) -> ImageSet:
    """Read a set of images from an array file.

    Args:
        path: `.npz` holding `images` uint8 (N, H, W, 3) and optionally `labels` (N,) and `class_names` (K,), or `.npy`
            holding the images alone (such as `300K_random_images.npy`), which is memory-mapped, not read. Labels that
            are all -1 mean that the set has none. Pickled objects are refused.
        name: what the set is called; the file's stem by default.

    Raises:
        UserError: missing, foreign or damaged file, wrong rank, dtype or channel count, empty set, unusable labels.
    """
    name = name or path.stem
    if not path.is_file():
        raise UserError(f"{name}: no such file: {path}")
    try:
        if path.suffix == ".npy":
            return ImageSet(name, _checked(np.load(path, mmap_mode="r"), name))
        with np.load(path) as archive:
            if "images" not in archive:
                raise UserError(f"{name}: {path} has no array 'images'; found: {', '.join(archive.files) or 'nothing'}")
            images = _checked(archive["images"], name)
            labels = archive["labels"] if "labels" in archive else None
            class_names = tuple(map(str, archive["class_names"])) if "class_names" in archive else ()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}: {path} is not a readable {path.suffix} file of arrays ({reason})") from error
    if labels is not None and labels.size and (labels == -1).all():
        labels = None
    return ImageSet(name, images, labels, class_names)


def _checked(images: NDArray[np.generic], name: str) -> NDArray[np.uint8]:
    """Say what is wrong with an array of floats in the words that help, then leave the rest to `ImageSet`."""
    if np.issubdtype(images.dtype, np.floating) and images.size:
        sample = images[:256]
        if not np.isfinite(sample).all():
            raise UserError(f"{name}: images hold NaN or infinite values; uint8 in 0..255 is wanted")
        raise UserError(
            f"{name}: images have dtype {images.dtype} with values in {sample.min():g}..{sample.max():g}; "
            "uint8 in 0..255 is wanted (multiply [0, 1] floats by 255 and round)"
        )
    return images  # type: ignore[return-value]  # ImageSet refuses every dtype but uint8
