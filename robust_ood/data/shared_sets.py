"""Sets that an experiment names both to train or tune on and to test on."""

from __future__ import annotations

import filecmp
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.named import (
    EMBEDDED,
    data_set_key,
    find_path,
    is_found,
    part_key,
    source_of,
)
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.arrays import SUFFIXES
from robust_ood.data.sources.spec import SetSpec, located
from robust_ood.errors import UserError


def refuse_shared_sets(
    tests: Mapping[str, Sequence[str | SetSpec]],
    outliers: Sequence[str | SetSpec],
    validation_ood: Sequence[str | SetSpec],
    inliers: Mapping[str, str | SetSpec | None],
    root: Path,
) -> None:
    """Refuse an OOD test set that a method is also trained or tuned on.

    No part of the data set of the outliers may be a test. Validation sets may be other parts of a
    test's data set.

    Args:
        tests: OOD test sets by the field of `data` that names them.
        outliers: the sets of auxiliary outliers.
        validation_ood: OOD sets to validate on and to choose hyper-parameters with.
        inliers: the in-distribution parts, by field.
        root: folder of the data.

    Raises: `UserError` naming both fields.
    """
    inlier_keys = {
        part_key(spec, root, field): field for field, spec in inliers.items() if spec is not None
    }
    trained = {data_set_key(spec, root, "outliers") for spec in outliers}
    others = [*inliers.items(), *(("outliers", spec) for spec in outliers)]
    tuned = {part_key(spec, root, "validation_ood") for spec in validation_ood}
    for field, specs in tests.items():
        for spec in specs:
            if data_set_key(spec, root, field) in trained:
                raise _shared(field, spec, "outliers")
            for other_field, other in others:
                if other is not None and _is_copy(spec, other, root):
                    raise _shared(field, spec, other_field)
            key = part_key(spec, root, field)
            if key in tuned:
                raise _shared(field, spec, "validation_ood")
            if key in inlier_keys:
                raise _shared(field, spec, inlier_keys[key])


def _is_copy(spec: str | SetSpec, other: str | SetSpec, root: Path) -> bool:
    """Return whether two sets are array files with the same bytes, which few of one length are."""
    files = []
    for source in (source_of(spec), source_of(other)):
        path = find_path(located(root, source))
        if source in EMBEDDED or path is None or path.suffix not in SUFFIXES or not path.is_file():
            return False
        files.append(path)
    first, second = files
    try:
        return filecmp.cmp(first, second, shallow=False)
    except OSError:  # reported when it is read
        return False


def warn_of_missing_tests(tests: Mapping[str, Sequence[str | SetSpec]], root: Path) -> None:
    """Warn of OOD test sets that training does not read, and that are neither known nor there.

    Args:
        tests: OOD test sets by the field of `data` that names them.
        root: folder of the data.
    """
    for field, specs in tests.items():
        for spec in specs:
            if not is_found(spec, root, field):
                warnings.warn(
                    f"data.{field}: there is no set, file or folder {source_of(spec)!r} below "
                    f"{root}; training does not read it, but an evaluation will",
                    stacklevel=2,
                )


PROBES = 16
"""Images of an OOD set that are looked for in the in-distribution."""


def pixel_digests(images: ImageSet) -> frozenset[bytes]:
    """Return a digest of every image of a set in memory; none for one that is read from files."""
    if not images.in_memory:
        return frozenset()
    # One image at a time: indexing all of them would copy the set.
    return frozenset(_digest(images.images[index]) for index in range(len(images)))


def refuse_inliers(field: str, images: ImageSet, inliers: Mapping[str, frozenset[bytes]]) -> None:
    """Refuse an OOD set whose images are those of the in-distribution, whatever it is called.

    Its AUROC is .5 for every detector. Looked at are evenly spaced images of arrays.

    Args:
        field: the field of `data` that names the OOD set.
        images: the OOD set.
        inliers: digests of the in-distribution parts, by field; see `pixel_digests`.

    Raises: `UserError` where all images that are looked at are inliers of one part.
    """
    if not isinstance(images.images, np.ndarray):
        return
    indices = np.unique(np.linspace(0, len(images) - 1, PROBES).astype(int))
    probes = [_digest(image) for image in images.images[indices]]
    for part, digests in inliers.items():
        if all(probe in digests for probe in probes):
            raise UserError(
                f"data.{field}: {images.name} holds images of data.{part} (all {len(probes)} that "
                "were looked at), so it is not out-of-distribution; name another set, or allow it "
                "with data.allow_overlap: true"
            )


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def _shared(field: str, spec: str | SetSpec, other_field: str) -> UserError:
    return UserError(
        f"data.{field}: {source_of(spec)} is also in data.{other_field}, so the test would not be "
        "independent; name another set, or allow it with data.allow_overlap: true"
    )
