"""From the name of a set, as a config gives it, to its images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from robust_ood.data.arrays import SUFFIXES, load_arrays
from robust_ood.data.digits import DIGIT_SETS
from robust_ood.data.sets import ImageSet
from robust_ood.data.synthetic import NOISE_SETS
from robust_ood.errors import UserError, unknown_name

EMBEDDED: dict[str, Callable[[], ImageSet]] = {**DIGIT_SETS, **NOISE_SETS}
"""Sets that come with the package's dependencies and need no file."""


def load_set(spec: str, root: Path, field: str = "data") -> ImageSet:
    """Return the set that a config names.

    Args:
        spec: an embedded set ("digits/train", "noise/gaussian"), or an array file (`.npz`, `.npy`), relative to `root`
            or absolute; the suffix may be left out.
        root: folder of array files.
        field: the config field, for messages.

    Raises:
        UserError: no such set or file, or one that is damaged or of the wrong kind.
    """
    if spec in EMBEDDED:
        return EMBEDDED[spec]()
    path = root / spec
    candidates = [path] if path.suffix in SUFFIXES else [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    for candidate in candidates:
        if candidate.is_file():
            return load_arrays(candidate)
    if not root.is_dir():
        raise UserError(f"data.root: no such folder: {root} (wanted for data.{field}: {spec})")
    if path.suffix in SUFFIXES:
        raise UserError(f"data.{field}: no such file: {path}")
    raise unknown_name(f"data.{field}", spec, [*EMBEDDED, *(p.stem for p in root.iterdir() if p.suffix in SUFFIXES)])
