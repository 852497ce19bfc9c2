"""Image arrays on disk: `.npz` with `images` (and `labels`, `class_names`), and bare `.npy`.

Attacked images are float32 in [0, 1], in a file whose `attack` says by what they were attacked.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.arguments import typed
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError
from robust_ood.texts import printable

SUFFIXES = (".npz", ".npy")
_ARRAYS = ("images", "labels", "class_names", "attack")
# All that NumPy and zipfile raise on a file that is not what it claims to be; a damaged length may
# ask for any amount of memory.
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    MemoryError,
)


@typed
def load_arrays(path: Path | str, name: str | None = None) -> ImageSet:
    """Read a set of images from an array file.

    Args:
        path: `.npz` holding `images` uint8 (N, H, W, 3), or grey (N, H, W) or (N, H, W, 1), and
            optionally `labels` (N,) and `class_names` (K,), or `.npy` holding the images alone
            (such as `300K_random_images.npy`), which is memory-mapped, not read. Labels that are
            all -1 mean that the set has none. Pickled objects are refused. Where `attack` holds the
            label of an attack, as in files of `save_attacked`, `images` may be float32 in [0, 1].
        name: what the set is called; the file's stem by default.

    Raises:
        UserError: the file is missing, may not be read, is damaged or of another format; the images
            have the wrong rank, dtype or number of channels, or there are none; the labels or class
            names are unusable.
    """
    path = Path(path)
    name = name or printable(path.stem)
    _require_readable(path, name)
    try:
        arrays = _read(path)
    except DAMAGE as error:
        raise UserError(
            f"{name}: {path} is not a readable {path.suffix} file of arrays ({_reason(error)})"
        ) from error
    if "images" not in arrays:
        names = ", ".join(arrays) or "nothing"
        raise UserError(f"{name}: {path} has no array 'images'; it has: {names}")
    attack = _attack(arrays, name)
    images = checked(arrays["images"], name, attacked=attack is not None)
    return ImageSet(name, images, _labels(arrays), _class_names(arrays, name), attack=attack)


def load_array(path: Path, name: str) -> NDArray[Any]:
    """Read one bare array, such as labels, from a `.npy` file; pickled objects are refused.

    Raises: `UserError` naming the file and what is wrong with it.
    """
    _require_readable(path, name)
    try:
        if not zipfile.is_zipfile(path):
            return np.asarray(np.load(path))
    except DAMAGE as error:
        raise UserError(
            f"{name}: {path} is not a readable .npy array ({_reason(error)})"
        ) from error
    raise UserError(f"{name}: {path} is an archive of arrays; expected one bare .npy array")


def checked(images: NDArray[Any], name: str, *, attacked: bool = False) -> NDArray[Any]:
    """Return the images `(N, H, W, C)`, refusing floats with advice; `ImageSet` checks the rest.

    Images `(N, H, W)` are grey. Floats in [0, 1] are accepted where an attack made them.
    """
    is_float = bool(np.issubdtype(images.dtype, np.floating))
    if is_float and attacked and images.size and images.min() >= 0 and images.max() <= 1:
        is_float = False
        images = images.astype(np.float32, copy=False)
    if not is_float or not images.size:
        # Three columns are the channels of a single image rather than a picture.
        return images[..., None] if images.ndim == 3 and images.shape[2] != 3 else images
    sample = np.asarray(images[:4096])
    if not np.isfinite(sample).all():
        raise UserError(
            f"{name}: images hold NaN or infinite values; expected dtype uint8 in 0..255"
        )
    if attacked:
        raise UserError(
            f"{name}: expected attacked images as floats in [0, 1], got values in "
            f"{images.min():g}..{images.max():g}"
        )
    raise UserError(
        f"{name}: expected images of dtype uint8 in 0..255, got {images.dtype} with values in "
        f"{sample.min():g}..{sample.max():g} (multiply floats in [0, 1] by 255 and round)"
    )


def _require_readable(path: Path, name: str) -> None:
    """Raise `UserError` for a file that is not there, or that may not be read."""
    if not path.is_file():
        raise UserError(f"{name}: no such file: {path}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{name}: cannot read {path} ({error.strerror or error})") from error


def _class_names(arrays: dict[str, NDArray[Any]], name: str) -> tuple[str, ...]:
    names = arrays.get("class_names")
    if names is None:
        return ()
    if names.ndim != 1:
        raise UserError(
            f"{name}: class_names: expected a list (K,) of one name for each class, got shape "
            f"{names.shape}"
        )
    return tuple(map(str, names))


def _attack(arrays: dict[str, NDArray[Any]], name: str) -> str | None:
    """Return the label of the attack that made the images, if the file has one."""
    attack = arrays.get("attack")
    if attack is None:
        return None
    if attack.ndim or attack.dtype.kind != "U" or not str(attack):
        raise UserError(f"{name}: attack: expected one text, the attack's label")
    return str(attack)


def _labels(arrays: dict[str, NDArray[Any]]) -> NDArray[np.int64] | None:
    """Return the labels, or None where there are none or all of them are -1."""
    labels = arrays.get("labels")
    if labels is None:
        return None
    integers = labels.size and labels.dtype.kind in "iu"
    return None if integers and (labels == -1).all() else labels


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file by name, whatever format its suffix claims."""
    if not zipfile.is_zipfile(path):
        if path.suffix == ".npz":
            raise ValueError("not a zip archive; truncated or of another format")
        return {"images": np.load(path, mmap_mode="r")}
    with np.load(path) as archive:
        names = [name for name in archive.files if name in _ARRAYS]
        arrays = {name: archive[name] for name in names or archive.files}
    for array in arrays.values():
        if not isinstance(array, np.ndarray):  # NumPy returns members of other formats as bytes
            raise ValueError("a member is not an array")
    return arrays


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
