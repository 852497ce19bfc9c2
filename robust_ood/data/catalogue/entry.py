"""What the catalogue says of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from robust_ood.data.files import Fit
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError, unknown_name

Role = Literal["in-distribution", "ood", "outliers"]
Layout = Callable[[Path, Fit | None, str], ImageSet]
"""Reads a set: the folder that holds it, how images of many sizes become one, and the set's
name.
"""


@dataclass(frozen=True)
class Link:
    """A file to download.

    Args:
        file: its name on disk.
        urls: where it is, tried in order.
        md5: its published checksum; None where none is known, and the download is then checked for
            its length alone.
        folder: where in the data set's folder it goes, and is unpacked.
        unpack: whether it is an archive.
    """

    file: str
    urls: tuple[str, ...]
    md5: str | None
    folder: str = "."
    unpack: bool = True


@dataclass(frozen=True)
class Part:
    """A part of a data set.

    Args:
        marker: a file or folder of the original layout that shows that the part is there.
        layout: how to read it.
        count: how many images it has in the original; None where that depends on what is left out.
        classes: how many classes; 0 where its labels are of no use here.
        sized: whether its images come in many sizes, so that the experiment has to state one.
    """

    marker: str
    layout: Layout
    count: int | None
    classes: int = 0
    sized: bool = False


@dataclass(frozen=True)
class Entry:
    """A data set.

    Args:
        name: what configs call it.
        title: what people call it.
        roles: what it serves for in the papers.
        licence: what is known of the terms it comes under; a note, no advice.
        homepage: where it is described.
        links: the files to download; empty where nobody may pass them on.
        parts: its parts by name.
        default: the part that the bare name means.
        manual: what to do by hand where a download is refused or not offered.
        note: what differs from the papers, if anything does.
    """

    name: str
    title: str
    roles: tuple[Role, ...]
    licence: str
    homepage: str
    links: tuple[Link, ...]
    parts: Mapping[str, Part]
    default: str
    manual: str
    note: str = ""

    def home(self, root: Path, part: str) -> Path:
        """Return the folder that holds a part: the data set's own below the root, or else the root
        itself.

        Raises: `UserError` saying how to get the data set.
        """
        marker = self.parts[part].marker
        for folder in (root / self.name, root):
            if (folder / marker).exists():
                return folder
        how = f"`robust-ood data download {self.name} --root {root}`" if self.links else "by hand"
        raise UserError(
            f"{self.name}/{part}: no {marker} in {root / self.name}; get it {how}: {self.manual}"
        )

    def load(self, root: Path, part: str, fit: Fit | None) -> ImageSet:
        """Return a part, read from its original layout.

        Raises: `UserError` where it is missing, damaged, or has images of many sizes and no size is
        given.
        """
        wanted, folder = self.parts[part], self.home(root, part)
        name = self.name if part == self.default else f"{self.name}-{part}"
        if wanted.sized and fit is None:
            raise UserError(
                f"data.size: not given, and the images of {self.name} come in many sizes"
            )
        images = replace(wanted.layout(folder, fit, name), name=name)
        if wanted.count not in (None, len(images)):
            warnings.warn(
                f"{name}: {len(images)} images in {folder}, not the {wanted.count} expected",
                stacklevel=2,
            )
        return images


def find_entry(name: str, entries: Mapping[str, Entry], field: str = "name") -> Entry:
    """Return the entry of a name. Raises: `UserError` with the nearest known name."""
    if name not in entries:
        raise unknown_name(field, name, entries)
    return entries[name]


def find_part(spec: str, entries: Mapping[str, Entry], field: str = "name") -> tuple[Entry, str]:
    """Return the entry and the part that `NAME` or `NAME/PART` means.

    Raises: `UserError` with the nearest known name.
    """
    name, _, part = spec.partition("/")
    entry = find_entry(name, entries, field)
    part = part or entry.default
    if part not in entry.parts:
        raise unknown_name(field, spec, [f"{name}/{known}" for known in entry.parts])
    return entry, part
