"""Labels that mean the same in all parts of the in-distribution: class names bind them.

Folders number their class folders in alphabetical order, each for itself. Where a class folder is
missing from the test set, all later classes would silently get other numbers there.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from robust_ood.data.named import EMBEDDED, find_in_catalogue, find_path, source_of
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources import arrays, folders
from robust_ood.data.sources.spec import SetSpec, located
from robust_ood.errors import UserError


def class_names_of(spec: str | SetSpec, root: Path) -> tuple[str, ...]:
    """Return the class names of a folder or an array file without reading its images.

    None are returned for other sources, whose labels are fixed by their publishers, and for what
    cannot be read, which whoever loads the set reports.
    """
    source = source_of(spec)
    relabelled = isinstance(spec, SetSpec) and spec.labels is not None
    if relabelled or source in EMBEDDED or find_in_catalogue(source, root) is not None:
        return ()
    path = find_path(located(root, source))
    if path is None:
        return ()
    if path.is_dir():
        return folders.class_names(path)
    if path.suffix != ".npz" or not os.access(path, os.R_OK) or not zipfile.is_zipfile(path):
        return ()
    try:
        with np.load(path) as archive:
            return tuple(map(str, np.atleast_1d(archive["class_names"])))
    except (*arrays.DAMAGE, TypeError):
        return ()


def bind_labels(images: ImageSet, training_names: tuple[str, ...]) -> ImageSet:
    """Return a set whose labels are the training set's numbers of the same class names.

    Raises: `UserError` for a class that the training set does not have.
    """
    if not training_names or not images.class_names or images.labels is None:
        return images
    if images.class_names == training_names:
        return images
    unknown = sorted(set(images.class_names) - set(training_names))
    if unknown:
        raise UserError(
            f"{images.name}: class {unknown[0]!r} is not a class of data.train; "
            f"known: {', '.join(training_names)}"
        )
    if len(set(training_names)) < len(training_names):
        raise UserError(
            f"{images.name}: its classes are not in the order of data.train's, and two classes of "
            "that have one name; expected class_names that differ"
        )
    numbers = np.array(
        [training_names.index(name) for name in images.class_names]
    )  # (K of images,)
    return replace(images, labels=numbers[images.labels], class_names=training_names)


def bind_shifted(images: ImageSet, training_names: tuple[str, ...], num_classes: int) -> ImageSet:
    """Return inliers of another look with labels of the training set's classes, or without labels.

    Their labels are needed for accuracies alone, so those that do not fit are a warning.
    """
    if images.labels is None:
        return images
    try:
        bound = bind_labels(images, training_names)
        bound.require_classes(num_classes)
    except UserError as error:
        warnings.warn(f"data.shifted: {error}; no accuracy is given on this set", stacklevel=2)
        return replace(images, labels=None, class_names=())
    return bound
