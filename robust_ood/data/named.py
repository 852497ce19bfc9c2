"""From the name of a set, as a config gives it, to its images."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.arguments import typed
from robust_ood.data.catalogue import CATALOGUE, CatalogueEntry, find_part
from robust_ood.data.memory import MEMORY_LIMIT, read_into_memory
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources import arrays
from robust_ood.data.sources.corruptions import corrupted
from robust_ood.data.sources.datasets import load_dataset
from robust_ood.data.sources.digits import DIGIT_SETS
from robust_ood.data.sources.files import ImageFiles
from robust_ood.data.sources.folders import is_image, load_folder
from robust_ood.data.sources.form import Channels, ImageForm, bring_to_form
from robust_ood.data.sources.hugging_face import PREFIX, is_saved, load_named, load_saved
from robust_ood.data.sources.image_lists import load_list
from robust_ood.data.sources.shards import find_shards, is_shards, load_shards
from robust_ood.data.sources.spec import SetSource, SetSpec, located, read_set
from robust_ood.data.sources.synthetic import NOISE_SETS
from robust_ood.errors import UserError, nearest, unknown_name
from robust_ood.randomness import generator
from robust_ood.texts import printable

EMBEDDED: dict[str, Callable[[], ImageSet]] = {**DIGIT_SETS, **NOISE_SETS}
"""Sets that come with the package's dependencies and need no file."""


@typed
def load_set(
    spec: SetSource | Path,
    root: Path | str,
    field: str = "data",
    size: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
    channels: Channels = 3,
) -> ImageSet:
    """Return the set that a config names.

    Args:
        spec: what `SetSpec.source` describes, or a `SetSpec`, or its settings as a mapping. The
            suffix of an array file may be left out.
        root: folder of the data: array files, image folders, and downloads of `robust-ood data
            download`. It and all paths may begin with `~`.
        field: the config field, for messages.
        size: side of the images in pixels, for sets that do not state their own; None leaves them
            unchanged.
        memory_limit: bytes up to which files are read into memory; larger sets are read batch by
            batch.
        channels: 1 for grey images, 3 for RGB, for sets that do not state their own.

    Raises:
        UserError: there is no such set or file, or it is damaged or of the wrong kind.
    """
    spec = read_set(f"data.{field}", spec)
    if isinstance(spec, str):
        spec = SetSpec(spec)
    form = spec.form(size, channels)
    root = located(root, "")
    images = _load_source(spec, root, field, form)
    images = replace(images, max_unreadable=spec.max_unreadable)
    if spec.labels is not None:
        labels = arrays.load_array(located(root, spec.labels), f"data.{field}: labels")
        # The names of the source's own classes say nothing of these.
        images = replace(images, labels=labels, class_names=())
    _require_form(images, form, spec)
    images = bring_to_form(images, form)
    if spec.corruption is not None:
        images = corrupted(images, spec.corruption, spec.severity or 3, spec.seed)
    indices = _select(spec, root, field, len(images))
    if indices is not None:
        images = images.subset(indices)
    images = replace(images, name=spec.name or images.name)
    return read_into_memory(images, memory_limit if spec.cache else 0)


def source_of(spec: str | SetSpec) -> str:
    """Return the source that a config names, as it is written there."""
    return spec if isinstance(spec, str) else spec.source


def data_set_key(spec: str | SetSpec, root: Path, field: str) -> str:
    """Return what all names of one data set have in common.

    It is the name of the catalogue entry, whichever part, the resolved file, or the name itself.

    field: of `data`, for messages.
    """
    source = source_of(spec)
    if source in EMBEDDED:
        return source
    entry_and_part = find_in_catalogue(source, root, field)
    if entry_and_part is not None:
        return entry_and_part[0].name
    path = find_path(located(root, source))
    return source if path is None else str(path.resolve())


def part_key(spec: str | SetSpec, root: Path, field: str) -> str:
    """Return what all names of the same images have in common.

    As `data_set_key`, but the parts of a catalogue entry are different sets.
    """
    source = source_of(spec)
    if source not in EMBEDDED:
        entry_and_part = find_in_catalogue(source, root, field)
        if entry_and_part is not None:
            entry, part = entry_and_part
            return f"{entry.name}/{part}"
    return data_set_key(spec, root, field)


def is_found(spec: str | SetSpec, root: Path, field: str) -> bool:
    """Return whether a source is a known name, an existing path or a class path.

    A catalogue entry need not be downloaded, nor a class be importable.
    """
    source = source_of(spec)
    if is_shards(source):
        shards = find_shards(located(root, source))
        return bool(shards) and all(shard.is_file() for shard in shards)
    known = source in EMBEDDED or source.startswith(PREFIX)
    known = known or find_in_catalogue(source, root, field) is not None
    return known or find_path(located(root, source)) is not None or _is_class_path(source)


def needs_size(source: str, root: Path) -> bool:
    """Return whether a source's images may have any size, so that a size has to be given."""
    if source in EMBEDDED:
        return False
    entry_and_part = find_in_catalogue(source, root)
    if entry_and_part is not None:
        entry, part = entry_and_part
        return entry.parts[part].sized
    path = find_path(located(root, source))
    return path is None or path.suffix not in arrays.SUFFIXES


def read_indices(path: Path, available: int, field: str) -> NDArray[np.int64]:
    """Return the indices that a text file lists, one a line, each in 0..available-1.

    Raises: `UserError` naming the field and the first line that is no such index.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}: cannot read {path} ({error})") from error
    indices: list[int] = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if not text.isdecimal() or int(text) >= available:
            raise UserError(
                f"{field}: line {number} of {path}: expected an index in 0..{available - 1}, "
                f"got {text!r}"
            )
        indices.append(int(text))
    return np.array(indices, np.int64)


def _load_source(spec: SetSpec, root: Path, field: str, form: ImageForm) -> ImageSet:
    """Return all images of a source: an embedded set, a catalogue entry, a path or a class path."""
    source = spec.source
    if source in EMBEDDED:
        return EMBEDDED[source]()
    if source.startswith(PREFIX):
        form = _require_size(form, source, field)
        return load_named(source, spec.arguments, form, field)
    if is_shards(source):
        return load_shards(located(root, source), _require_size(form, source, field), field)
    entry_and_part = find_in_catalogue(source, root, field)
    if entry_and_part is not None:
        entry, part = entry_and_part
        return entry.load(root, part, form)
    path = find_path(located(root, source))
    if path is not None:
        return _load_path(path, spec, root, field, form)
    if _is_class_path(source):
        form = _require_size(form, source, field)
        return load_dataset(source, spec.arguments, form, spec.name, kept=spec.cache)
    raise _unknown_source(source, root, field)


def _require_form(images: ImageSet, form: ImageForm, spec: SetSpec) -> None:
    """Refuse to resize, to convert or to corrupt attacked images, which would undo the attack."""
    if not images.is_float:
        return
    if bring_to_form(images, form) is not images:
        height, width = images.image_shape
        raise UserError(
            f"{images.name}: attacked images are taken as they are, {images.channels} channels of "
            f"{height} x {width}; give the set this `size` and `channels: {images.channels}`"
        )
    if spec.corruption is not None:
        raise UserError(
            f"corruption: {images.name} holds attacked images as floats; expected uint8"
        )


def _load_path(path: Path, spec: SetSpec, root: Path, field: str, form: ImageForm) -> ImageSet:
    if path.suffix in arrays.SUFFIXES:
        images = arrays.load_arrays(path)
        if images.channels < form.channels:
            warnings.warn(
                f"{images.name}: its grey images are repeated over three channels; "
                "`channels: 1` keeps one",
                stacklevel=2,
            )
        return images
    if is_saved(path):
        form = _require_size(form, spec.source, field)
        return load_saved(path, spec.arguments, form, field)
    if path.is_dir():
        return load_folder(path, _require_size(form, spec.source, field))
    if is_image(path):
        picture = ImageFiles([path], _require_size(form, spec.source, field), printable(path.stem))
        return ImageSet(printable(path.stem), picture)
    if path.suffix == ".txt":
        base = located(root, spec.base) if spec.base else None
        return load_list(path, base, _require_size(form, spec.source, field))
    accepted = ", ".join(arrays.SUFFIXES)
    raise UserError(
        f"data.{field}: expected {accepted}, an image list (.txt), shards (.tar), a picture or a "
        f"folder of images, got {path}"
    )


def _require_size(form: ImageForm, source: str, field: str) -> ImageForm:
    if form.size is None:
        raise UserError(
            f"data.size: not given, and the images of {source} (data.{field}) may have any size"
        )
    return form


def _is_class_path(source: str) -> bool:
    file_suffix = Path(source).suffix in (*arrays.SUFFIXES, ".txt")
    return "/" not in source and "." in source and not file_suffix


def find_in_catalogue(
    source: str, root: Path, field: str | None = None
) -> tuple[CatalogueEntry, str] | None:
    """Return the catalogue's entry and part of that name, or None.

    An existing path that names no part of an entry is a path, even in a folder called like the
    entry.

    Raises: `UserError` for a part that the catalogue does not know.
    """
    name, _, part = source.partition("/")
    if name not in CATALOGUE:
        return None
    unknown_part = part and part not in CATALOGUE[name].parts
    if unknown_part and find_path(located(root, source)) is not None:
        return None
    return find_part(source, CATALOGUE, "name" if field is None else f"data.{field}")


def find_path(path: Path) -> Path | None:
    """Return the existing path of that name, with or without the suffix of an array file."""
    if path.exists():
        return path
    if not path.name:
        return None
    for suffix in arrays.SUFFIXES:
        array_file = path.with_name(path.name + suffix)
        if array_file.exists():
            return array_file
    return None


def _select(spec: SetSpec, root: Path, field: str, available: int) -> NDArray[np.int64] | None:
    """Return the indices that `exclude` and `count` leave; None where both are absent."""
    if spec.exclude is None and spec.count is None:
        return None
    indices = np.arange(available)
    if spec.exclude is not None:
        excluded = read_indices(located(root, spec.exclude), available, f"data.{field}: exclude")
        indices = np.setdiff1d(indices, excluded)
    if spec.count is None:
        return indices
    if spec.count > len(indices):
        raise UserError(
            f"data.{field}: count {spec.count} is more than the {len(indices)} images of "
            f"{spec.source}"
        )
    source = generator(spec.seed, "count", spec.source)
    drawn = torch.randperm(len(indices), generator=source)[: spec.count]
    chosen: NDArray[np.int64] = indices[np.sort(drawn.numpy())]
    return chosen


def _unknown_source(source: str, root: Path, field: str) -> UserError:
    """Return the error for a source that is neither a name nor a path, with the nearest name."""
    similar = difflib.get_close_matches(source, [*EMBEDDED, *CATALOGUE], cutoff=0.7)
    is_array_file = Path(source).suffix in arrays.SUFFIXES  # never the name of a set
    if not root.is_dir() and (is_array_file or not similar):
        return UserError(f"data.root: no such folder: {root} (needed for data.{field}: {source})")
    path = located(root, source)
    if path.suffix in arrays.SUFFIXES:
        return UserError(f"data.{field}: no such file: {path}")
    if "/" in source and not similar:
        hint = _similar_path(root, source)
        return UserError(f"data.{field}: no such file or folder: {path}{hint}")
    names = {*EMBEDDED, *CATALOGUE}
    for path in root.iterdir() if root.is_dir() else ():
        if not path.name.startswith("."):
            names.add(path.stem if path.suffix in arrays.SUFFIXES else path.name)
    return unknown_name(f"data.{field}", source, names)


def _similar_path(root: Path, source: str) -> str:
    """Return a hint for a message: the path with its first missing folder or file corrected."""
    folder = root
    missing, *rest = source.split("/")
    while rest and (folder / missing).is_dir():
        folder = folder / missing
        missing, *rest = rest
    near = nearest(missing, [path.name for path in folder.iterdir()])
    if near is None:
        return ""
    corrected = folder.joinpath(near, *rest).relative_to(root)
    return f"; did you mean {corrected.as_posix()!r}?"
