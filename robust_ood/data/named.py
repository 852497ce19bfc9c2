"""From the name of a set, as a config gives it, to its images."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.data import arrays, folders
from robust_ood.data.catalogue import CATALOGUE, Entry, find_part
from robust_ood.data.datasets import load_dataset
from robust_ood.data.digits import DIGIT_SETS
from robust_ood.data.files import Fit
from robust_ood.data.sets import ImageSet
from robust_ood.data.spec import SetSpec
from robust_ood.data.storage import fitted, in_memory
from robust_ood.data.synthetic import NOISE_SETS
from robust_ood.errors import UserError, nearest, unknown_name
from robust_ood.randomness import generator

EMBEDDED: dict[str, Callable[[], ImageSet]] = {**DIGIT_SETS, **NOISE_SETS}
"""Sets that come with the package's dependencies and need no file."""

MEMORY_LIMIT = 2 * 2**30
"""Bytes up to which a set of files or of a data set's items is read into memory once, instead of
again each epoch.
"""


def load_set(
    spec: str | SetSpec,
    root: Path,
    field: str = "data",
    size: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> ImageSet:
    """Return the set that a config names.

    Args:
        spec: what `SetSpec.source` describes, or a `SetSpec`. The suffix of an array file may be
            left out.
        root: folder of the data: array files, image folders, and what `robust-ood data download`
            brought.
        field: the config field, for messages.
        size: side of the images in pixels, for sets that do not state their own; None takes them as
            they are.
        memory_limit: bytes up to which files are read into memory; larger sets are read batch by
            batch.

    Raises:
        UserError: no such set or file, or one that is damaged or of the wrong kind.
    """
    spec = SetSpec(spec) if isinstance(spec, str) else spec
    fit = spec.fit(size)
    images = replace(_source(spec, root, field, fit), max_unreadable=spec.max_unreadable)
    if spec.labels is not None:
        images = replace(
            images, labels=arrays.load_array(root / spec.labels, f"data.{field}: labels")
        )
    images = fitted(images, fit)
    chosen = _chosen(spec, root, field, len(images))
    if chosen is not None:
        images = images.subset(chosen)
    return in_memory(replace(images, name=spec.name or images.name), memory_limit)


def origin(spec: str | SetSpec, root: Path, field: str) -> str:
    """Return what two names of one set have in common: the catalogue entry, the file, or the name
    itself.

    field: of `data`, for messages.
    """
    source = spec if isinstance(spec, str) else spec.source
    if source in EMBEDDED:
        return source
    found = _entry(source, root, field)
    if found is not None:
        return found[0].name
    path = _existing(root / source)
    return str(path.resolve()) if path is not None else source


def part_of(spec: str | SetSpec, root: Path, field: str) -> str:
    """Return what two names of the same images have in common: as `origin`, but another part is
    another set.
    """
    source = spec if isinstance(spec, str) else spec.source
    found = None if source in EMBEDDED else _entry(source, root, field)
    return origin(spec, root, field) if found is None else f"{found[0].name}/{found[1]}"


def has_any_size(source: str, root: Path) -> bool:
    """Return whether a source's images may have any size, so that whoever reads them has to state
    one.
    """
    if source in EMBEDDED:
        return False
    found = _entry(source, root)
    if found is not None:
        entry, part = found
        return entry.parts[part].sized
    path = _existing(root / source)
    return path is None or path.suffix not in arrays.SUFFIXES


def _source(spec: SetSpec, root: Path, field: str, fit: Fit | None) -> ImageSet:
    source = spec.source
    if source in EMBEDDED:
        return EMBEDDED[source]()
    found = _entry(source, root, field)
    if found is not None:
        entry, part = found
        return entry.load(root, part, fit)
    path = _existing(root / source)
    if path is not None:
        return _from_path(path, spec, root, field, fit)
    if (
        "/" not in source
        and "." in source
        and Path(source).suffix not in (*arrays.SUFFIXES, ".txt")
    ):
        return load_dataset(source, spec.arguments, _wanted(fit, source, field), spec.name)
    known = difflib.get_close_matches(source, [*EMBEDDED, *CATALOGUE], cutoff=0.7)
    if not root.is_dir() and not known:
        raise UserError(f"data.root: no such folder: {root} (wanted for data.{field}: {source})")
    if (root / source).suffix in arrays.SUFFIXES:
        raise UserError(f"data.{field}: no such file: {root / source}")
    if "/" in source and not known:
        raise UserError(
            f"data.{field}: no such file or folder: {root / source}{_sibling(root, source)}"
        )
    here = (
        [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []
    )
    names = [path.stem if path.suffix in arrays.SUFFIXES else path.name for path in here]
    raise unknown_name(f"data.{field}", source, {*EMBEDDED, *CATALOGUE, *names})


def _sibling(root: Path, source: str) -> str:
    """Return, for a message, what stands there of a similar name in place of the first part that
    does not.
    """
    there, (first, *rest) = root, source.split("/")
    while rest and (there / first).is_dir():
        there, (first, *rest) = there / first, rest
    near = nearest(first, [path.name for path in there.iterdir()])
    return (
        f"; did you mean {(there / '/'.join([near, *rest])).relative_to(root).as_posix()!r}?"
        if near
        else ""
    )


def _entry(source: str, root: Path, field: str | None = None) -> tuple[Entry, str] | None:
    """Return the catalogue's entry and part of that name, or None; a path that is there and names
    no part is no part.

    Raises: `UserError` for a part that the catalogue does not know.
    """
    name, _, part = source.partition("/")
    if name not in CATALOGUE or (
        part and part not in CATALOGUE[name].parts and _existing(root / source) is not None
    ):
        return None
    return find_part(source, CATALOGUE, "name" if field is None else f"data.{field}")


def _existing(path: Path) -> Path | None:
    candidates = [
        path,
        *(path.with_name(path.name + suffix) for suffix in arrays.SUFFIXES if path.name),
    ]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _from_path(path: Path, spec: SetSpec, root: Path, field: str, fit: Fit | None) -> ImageSet:
    if path.suffix in arrays.SUFFIXES:
        return arrays.load_arrays(path)
    if path.suffix != ".txt" and not path.is_dir():
        raise UserError(
            f"data.{field}: {path} is no {', '.join(arrays.SUFFIXES)}, image list (.txt) or folder of images"
        )
    fit = _wanted(fit, spec.source, field)
    if path.is_dir():
        return folders.load_folder(path, fit)
    return folders.load_list(path, root / spec.base if spec.base else None, fit)


def _wanted(fit: Fit | None, source: str, field: str) -> Fit:
    if fit is None:
        raise UserError(
            f"data.size: not given, and the images of {source} (data.{field}) may have any size"
        )
    return fit


def _chosen(spec: SetSpec, root: Path, field: str, available: int) -> NDArray[np.int64] | None:
    """Return the indices that `exclude` and `count` leave; None where both are absent."""
    if spec.exclude is None and spec.count is None:
        return None
    left = np.arange(available)
    if spec.exclude is not None:
        left = np.setdiff1d(
            left, read_indices(root / spec.exclude, available, f"data.{field}: exclude")
        )
    if spec.count is not None:
        if spec.count > len(left):
            raise UserError(
                f"data.{field}: count {spec.count} is more than the {len(left)} images of {spec.source}"
            )
        draw = torch.randperm(len(left), generator=generator(spec.seed, "count", spec.source))
        left = left[np.sort(draw[: spec.count].numpy())]
    return left


def read_indices(path: Path, available: int, field: str) -> NDArray[np.int64]:
    """Return the indices that a text file lists, one a line, each in 0..available-1.

    Raises: `UserError` naming the field and the first line that is no such index.
    """
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: cannot read {path} ({error})") from error
    indices = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if text and not (text.isdecimal() and int(text) < available):
            raise UserError(
                f"{field}: line {number} of {path} is {text!r}; an index in 0..{available - 1} is wanted"
            )
        indices += [int(text)] if text else []
    return np.array(indices, np.int64)
