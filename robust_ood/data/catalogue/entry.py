"""What the catalogue says of a data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.form import ImageForm
from robust_ood.errors import UserError, unknown_name

Role = Literal["in-distribution", "ood", "outliers"]
Layout = Callable[[Path, ImageForm, str], ImageSet]
"""Reads a set from the folder that holds it; then come how images of many sizes become one, and the
set's name.
"""


@dataclass(frozen=True)
class Link:
    """A file to download.

    Args:
        file: its name on disk.
        urls: where it is, tried in order.
        md5: its published checksum; None where none is known, and only the length of the download
            is checked then.
        folder: where in the data set's folder it is stored and unpacked.
        unpack: whether it is an archive.
    """

    file: str
    urls: tuple[str, ...]
    md5: str | None
    folder: str = "."
    unpack: bool = True


@dataclass(frozen=True)
class DatasetPart:
    """A part of a data set.

    Args:
        marker: a file or folder of the original layout; the part is present if it exists.
        layout: how to read it.
        count: how many images it has in the original; None where that depends on what is left out.
        classes: how many classes; 0 where its labels are not used here.
        sized: whether its images have many sizes, so that the experiment has to state one.
    """

    marker: str
    layout: Layout
    count: int | None
    classes: int = 0
    sized: bool = False

    def folders(self, home: Path, root: Path) -> list[Path]:
        """Return which of the data set's own folder and the root hold the part."""
        return [folder for folder in (home, root) if (folder / self.marker).exists()]


@dataclass(frozen=True)
class CatalogueEntry:
    """A data set.

    Args:
        name: its name in configs.
        title: its usual name.
        roles: what the papers use it for.
        licence: what is known of its terms; a note, not legal advice.
        homepage: where it is described.
        links: the files to download; empty where nobody may redistribute them.
        parts: its parts by name.
        default: the part that the bare name means.
        manual: what to do by hand where a download is refused or not offered.
        note: how it differs from the papers, if it does.
    """

    name: str
    title: str
    roles: tuple[Role, ...]
    licence: str
    homepage: str
    links: tuple[Link, ...]
    parts: Mapping[str, DatasetPart]
    default: str
    manual: str
    note: str = ""

    def has(self, root: Path, part: str) -> bool:
        """Return whether a part is present below the root."""
        return bool(self.parts[part].folders(root / self.name, root))

    def home(self, root: Path, part: str) -> Path:
        """Return the folder that holds a part: the data set's own below the root, or the root.

        Raises: `UserError` saying how to get the data set.
        """
        folders = self.parts[part].folders(root / self.name, root)
        if folders:
            return folders[0]
        how = "by hand"
        if self.links:
            how = f"`robust-ood data download {self.name} --root {root}`"
        marker = self.parts[part].marker
        raise UserError(
            f"{self.name}/{part}: no {marker} in {root / self.name}; get it {how}: {self.manual}"
        )

    def load(self, root: Path, part: str, form: ImageForm) -> ImageSet:
        """Return a part, read from its original layout.

        Raises: `UserError` if it is missing or damaged, or has images of many sizes and no size is
        given.
        """
        content = self.parts[part]
        folder = self.home(root, part)
        name = self.name if part == self.default else f"{self.name}-{part}"
        if content.sized and form.size is None:
            raise UserError(f"data.size: not given, and the images of {self.name} have many sizes")
        images = replace(content.layout(folder, form, name), name=name)
        if content.count not in (None, len(images)):
            warnings.warn(
                f"{name}: expected {content.count} images, found {len(images)} in {folder}",
                stacklevel=2,
            )
        return images


def find_entry(
    name: str, entries: Mapping[str, CatalogueEntry], field: str = "name"
) -> CatalogueEntry:
    """Return the entry of a name. Raises: `UserError` with the nearest known name."""
    if name not in entries:
        raise unknown_name(field, name, entries)
    return entries[name]


def find_part(
    spec: str, entries: Mapping[str, CatalogueEntry], field: str = "name"
) -> tuple[CatalogueEntry, str]:
    """Return the entry and the part that `NAME` or `NAME/PART` means.

    Raises: `UserError` with the nearest known name.
    """
    name, _, part = spec.partition("/")
    entry = find_entry(name, entries, field)
    part = part or entry.default
    if part not in entry.parts:
        raise unknown_name(field, spec, [f"{name}/{known}" for known in entry.parts])
    return entry, part
