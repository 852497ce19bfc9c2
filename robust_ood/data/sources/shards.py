"""Tar shards, as WebDataset writes them, with every image at an index of its own.

The headers of the shards are read once. After that an image is one read at a known offset, in any
order and in any process, so training, fitting and evaluation give what they give on a folder.
WebDataset itself reads shards from front to back, and has no index: its batches depend on the
number of workers.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import has_magic
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.files import SUFFIXES, EncodedImages
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError
from robust_ood.texts import printable

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
"""Numbers of shards as WebDataset writes them: `{000000..000146}`."""
_LABEL_MEMBERS = (".cls", ".json")


def is_shards(source: str) -> bool:
    """Return whether a source names tar shards."""
    return source.endswith((".tar", ".tar.gz", ".tgz"))


def find_shards(pattern: Path) -> list[Path]:
    """Return the shards that a path, a range `{000..146}` or a pattern with `*` names, in order.

    A range names each of its shards, whether it exists or not.
    """
    numbers = _RANGE.search(str(pattern))
    if numbers is not None and not pattern.exists():
        shards: list[Path] = []
        width = len(numbers[1])
        for number in range(int(numbers[1]), int(numbers[2]) + 1):
            text = str(pattern)
            filled = text[: numbers.start()] + f"{number:0{width}}" + text[numbers.end() :]
            shards.extend(find_shards(Path(filled)))
        return shards
    if has_magic(pattern.name) and not pattern.exists():
        return sorted(pattern.parent.glob(pattern.name))
    return [pattern]


def load_shards(pattern: Path, form: ImageForm, field: str) -> ImageSet:
    """Return the images of tar shards, and their labels if they have any.

    A sample is the members, one after the other, whose names are equal up to the first dot of the
    file's name. Its image is the first member with the suffix of an image; its label the integer in
    `.cls`, or `label` in `.json`. Members whose names begin with a dot are no part of a sample, as
    in WebDataset.

    Args:
        pattern: a shard, or several by a range `{000000..000146}` or by `*`.
        form: what the images are brought to.
        field: the config field, for messages.

    Raises:
        UserError: a shard is missing, compressed, damaged or empty, some samples have a label and
            others have none, or labels lie apart from their images.
    """
    shards = find_shards(pattern)
    if not shards:
        raise UserError(f"data.{field}: no shard is named like {pattern}")
    name = _set_name(pattern)
    index = _Index()
    for number, shard in enumerate(shards):
        before = len(index.sizes)
        for sample in _samples(shard, field):
            index.add(number, sample)
        if len(index.sizes) == before:
            raise UserError(f"data.{field}: the shard {shard} holds no images")
    images = ShardImages(shards, index, form, name)
    return ImageSet(name, images, _labels(index, name))


class ShardImages(EncodedImages):
    """Images in tar files as a storage; each is read from its shard when asked for.

    Args:
        shards: the files.
        index: where each image is.
        form: what the images are brought to.
        name: name of the set, for messages.
    """

    def __init__(self, shards: list[Path], index: _Index, form: ImageForm, name: str) -> None:
        # Arrays instead of lists, so that worker processes share their memory.
        self.shards = shards
        self._shard = np.array(index.shards, np.int32)  # (N,)
        self._offset = np.array(index.offsets, np.int64)  # (N,)
        self._size = np.array(index.sizes, np.int64)  # (N,)
        super().__init__(len(self._size), form, name)

    def encoded(self, index: int) -> BytesIO:
        """Return the bytes of an image."""
        size = int(self._size[index])
        # Opened for each image: an open file would share its position among forked workers.
        with self.shards[self._shard[index]].open("rb") as shard:
            shard.seek(int(self._offset[index]))
            content = shard.read(size)
        if len(content) < size:
            raise ValueError("the shard ends within it")
        return BytesIO(content)

    def describe(self, index: int) -> str:
        """Return the shard of an image, and where in it the image starts."""
        shard = self.shards[self._shard[index]]
        return f"image {index}, at byte {self._offset[index]} of {shard}"


@dataclass
class _Sample:
    """The members of one sample that are needed."""

    key: str
    offset: int | None = None
    size: int = 0
    label: int | None = None


@dataclass
class _Index:
    """Where each image of a set is, and its label."""

    shards: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int | None] = field(default_factory=list)
    lone_labels: int = 0
    """How many samples have a label and no image."""

    def add(self, shard: int, sample: _Sample) -> None:
        """Note one more image."""
        if sample.offset is None:  # a sample without an image, such as a note on the shard
            self.lone_labels += sample.label is not None
            return
        self.shards.append(shard)
        self.offsets.append(sample.offset)
        self.sizes.append(sample.size)
        self.labels.append(sample.label)


def _samples(shard: Path, field: str) -> Iterator[_Sample]:
    """Return the samples of one shard, in its order."""
    try:
        with tarfile.open(shard, "r:") as archive:
            sample: _Sample | None = None
            for member in archive:
                # Kept, the headers of a large shard would fill the memory.
                archive.members = []  # type: ignore[attr-defined]
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                if not stem:  # such as `._0001.jpg`, which tar of macOS puts before `0001.jpg`
                    continue
                key = f"{folder}/{stem}"
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = _Sample(key)
                _include(sample, archive, member, f".{suffix.lower()}")
            if sample is not None:
                yield sample
            _require_end(archive)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"data.{field}: cannot read the shard {shard} ({_reason(shard, error)})"
        ) from error


def _require_end(archive: tarfile.TarFile) -> None:
    """Raise `ValueError` where reading stopped at a damaged header, which tarfile passes over."""
    block = b""
    if archive.fileobj is not None:
        archive.fileobj.seek(archive.offset)
        block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if not block:
        raise ValueError("its end mark is missing: the copy is not complete")
    if block.strip(b"\0"):
        raise ValueError(f"the header at byte {archive.offset} is damaged")


def _include(
    sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str
) -> None:
    """Note what one member says of its sample."""
    if suffix in SUFFIXES and sample.offset is None:
        sample.offset = member.offset_data
        sample.size = member.size
    if suffix not in _LABEL_MEMBERS:
        return
    opened = archive.extractfile(member)
    content = opened.read().decode() if opened is not None else ""
    if suffix == ".json":
        described = json.loads(content)
        label = described.get("label") if isinstance(described, dict) else None
        if label is None:
            return
        content = str(label)
    try:
        sample.label = int(content)
    except ValueError as error:
        raise ValueError(f"{member.name}: expected an integer label, got {content!r}") from error


def _reason(shard: Path, error: Exception) -> str:
    """Return why a shard cannot be read, in words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, tarfile.ReadError) and _is_compressed(shard):
        return "it is compressed, and images in it have no place; expected an uncompressed .tar"
    return str(error)


def _is_compressed(shard: Path) -> bool:
    with shard.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"  # gzip's mark


def _labels(index: _Index, name: str) -> NDArray[np.int64] | None:
    given = index.labels
    labels = [label for label in given if label is not None]
    if index.lone_labels and len(labels) != len(given):
        raise UserError(
            f"{name}: {index.lone_labels} labels in the shards have no image of their name beside "
            "them; expected the members of a sample one after the other (tar --sort=name)"
        )
    if labels and len(labels) != len(given):
        raise UserError(
            f"{name}: {len(labels)} of the {len(given)} images in the shards have a label (.cls, "
            "or `label` in .json); expected all or none"
        )
    if set(labels) <= {-1}:
        return None
    return np.array(labels, np.int64)


def _set_name(pattern: Path) -> str:
    """Return the name of a set: that of its shards, without numbers and patterns."""
    stem = pattern.name.removesuffix(".gz").removesuffix(".tar")
    plain = re.split(r"[{*?\[]", stem)[0].rstrip("-_.")
    return printable(plain or pattern.parent.name or "shards")
