"""Image arrays on disk: `.npz` with `images` (and `labels`, `class_names`), and bare `.npy`."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError

SUFFIXES = (".npz", ".npy")
# All that NumPy and zipfile raise on bytes that are not what they claim to be; a damaged length can
# ask for any memory.
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    MemoryError,
)


def load_arrays(path: Path, name: str | None = None) -> ImageSet:
    """Read a set of images from an array file.

    Args:
        path: `.npz` holding `images` uint8 (N, H, W, 3) and optionally `labels` (N,) and
            `class_names` (K,), or `.npy` holding the images alone (such as
            `300K_random_images.npy`), which is memory-mapped, not read. Labels that are all -1 mean
            that the set has none. Pickled objects are refused.
        name: what the set is called; the file's stem by default.

    Raises:
        UserError: missing, foreign or damaged file, wrong rank, dtype or channel count, empty set,
            unusable labels.
    """
    name = name or path.stem
    if not path.is_file():
        raise UserError(f"{name}: no such file: {path}")
    try:
        arrays = _read(path)
    except _DAMAGE as error:
        raise UserError(
            f"{name}: {path} is not a readable {path.suffix} file of arrays ({_reason(error)})"
        ) from error
    if "images" not in arrays:
        raise UserError(
            f"{name}: {path} has no array 'images'; found: {', '.join(arrays) or 'nothing'}"
        )
    labels = arrays.get("labels")
    if labels is not None and labels.size and labels.dtype.kind in "iu" and (labels == -1).all():
        labels = None
    class_names = tuple(map(str, arrays.get("class_names", ())))
    return ImageSet(name, checked(arrays["images"], name), labels, class_names)


def load_array(path: Path, name: str) -> NDArray[Any]:
    """Read one bare array, such as labels, from a `.npy` file; pickled objects are refused.

    Raises: `UserError` naming the file and what is wrong with it.
    """
    try:
        if not zipfile.is_zipfile(path):
            return np.asarray(np.load(path))
    except _DAMAGE as error:
        raise UserError(
            f"{name}: {path} is not a readable .npy array ({_reason(error)})"
        ) from error
    raise UserError(f"{name}: {path} is an archive of arrays; one bare .npy array is wanted")


def checked(images: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Say what is wrong with an array of floats in the words that help, then leave the rest to
    `ImageSet`.
    """
    if np.issubdtype(images.dtype, np.floating) and images.size:
        sample = np.asarray(images[:4096])
        if not np.isfinite(sample).all():
            raise UserError(
                f"{name}: images hold NaN or infinite values; uint8 in 0..255 is wanted"
            )
        raise UserError(
            f"{name}: images have dtype {images.dtype} with values in {sample.min():g}..{sample.max():g}; "
            "uint8 in 0..255 is wanted (multiply [0, 1] floats by 255 and round)"
        )
    return images


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name, whatever its suffix claims it is."""
    if zipfile.is_zipfile(path):
        with np.load(path) as archive:
            wanted = [key for key in archive.files if key in ("images", "labels", "class_names")]
            arrays = {key: archive[key] for key in wanted or archive.files}
        if any(
            not isinstance(array, np.ndarray) for array in arrays.values()
        ):  # NumPy hands foreign bytes out as such
            raise ValueError("a member is not an array")
        return arrays
    if path.suffix == ".npz":
        raise ValueError("not a zip archive; truncated or of another kind")
    return {"images": np.load(path, mmap_mode="r")}


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
