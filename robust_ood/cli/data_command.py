"""`robust-ood data`: list the catalogue, download, verify and preview sets, and find what two of
them share.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from robust_ood.cli.messages import parse_arguments
from robust_ood.cli.parsing import CommandParser
from robust_ood.data import CATALOGUE, EMBEDDED, GROUPS, ImageSet, SetSpec, load_set
from robust_ood.data.catalogue import Entry, find_entry
from robust_ood.data.catalogue.entry import Link
from robust_ood.data.download import checksum, fetch
from robust_ood.data.named import has_any_size
from robust_ood.data.overlap import Overlap, overlap
from robust_ood.data.preview import save_contact_sheet
from robust_ood.data.unpack import unpack
from robust_ood.errors import UserError
from robust_ood.writing import in_place_of


def parser() -> CommandParser:
    """Return the parser of the data command."""
    main = CommandParser(
        prog="robust-ood data", description="Data sets: what there is, and is it right?"
    )
    commands = main.add_subcommands()
    for name, (_, summary) in COMMANDS.items():
        command = CommandParser(description=summary)
        if name in ("download", "verify", "preview"):
            command.add_argument("name", type=str, help="data set, or data set/part")
        if name == "overlap":
            command.add_argument(
                "first", type=str, help="data set, file or folder, as configs name it"
            )
            command.add_argument("second", type=str, help="likewise")
        if name != "list":
            command.add_argument(
                "--root", type=Path, default=Path("data"), help="folder of the data"
            )
        if name in ("preview", "overlap", "verify"):
            command.add_argument(
                "--size",
                type=int | None,
                default=None,
                help="side in pixels of images that have many",
            )
        if name == "preview":
            command.add_argument(
                "--output", type=Path | None, default=None, help="picture (default: NAME.png)"
            )
        if name == "overlap":
            command.add_argument(
                "--distance",
                type=int,
                default=4,
                help="bits of the perceptual hash; -1: exact only",
            )
            command.add_argument("--workers", type=int, default=0, help="processes that read files")
            command.add_argument(
                "--output", type=Path | None, default=None, help="CSV of the pairs"
            )
            command.add_argument(
                "--exclude", type=Path | None, default=None, help="file of the first set's indices"
            )
        commands.add_subcommand(name, command, help=summary)
    return main


def run(arguments: Sequence[str]) -> int:
    """Run one of the data commands and return the exit code."""
    config = parse_arguments(parser(), arguments)
    COMMANDS[config.subcommand][0](config[config.subcommand], Console(soft_wrap=True))
    return 0


def list_sets(config: Any, console: Console) -> None:
    """Print the catalogue, the embedded sets and the groups."""
    for entry in CATALOGUE.values():
        parts = ", ".join(
            f"{name} ({part.count or 'most'} images)" for name, part in entry.parts.items()
        )
        how = (
            "by hand"
            if not entry.links
            else "checked"
            if all(link.md5 for link in entry.links)
            else "no checksum"
        )
        console.print(
            f"[bold]{entry.name}[/bold]: {entry.title}, {' and '.join(entry.roles)}; {parts}"
        )
        console.print(f"    download: {how}; licence: {entry.licence}; {entry.homepage}")
        if entry.note:
            console.print(f"    {entry.note}")
    console.print(f"\nembedded, no download: {', '.join(EMBEDDED)}\n")
    for name, groups in GROUPS.items():
        console.print(
            f"OOD for {name}: near {', '.join(groups.near) or 'none'}; far {', '.join(groups.far)}"
        )


def download(config: Any, console: Console) -> None:
    """Download a set, check it and unpack it."""
    entry = _entry(config.name)
    folder = config.root / entry.name
    if not entry.links:
        raise UserError(
            f"name: {entry.name} cannot be downloaded for you ({entry.licence}); by hand: {entry.manual}"
        )
    console.print(f"{entry.title}: {entry.homepage}; licence: {entry.licence}")
    for link in entry.links:
        _download(link, entry, folder)
        if link.md5 is None:
            console.print(f"{link.file}: no checksum is published; only its length was checked")
    console.print(f"{entry.name}: in {folder}")


def verify(config: Any, console: Console) -> None:
    """Check a set's archives against their checksums and its parts against the expected counts,
    reading every image.
    """
    entry = _entry(config.name)
    folder = config.root / entry.name
    for link in entry.links:
        path = folder / link.folder / link.file
        if not path.is_file():
            console.print(f"{link.file}: not there (removed after unpacking, or got elsewhere)")
        elif link.md5 is None:
            console.print(f"{link.file}: there; no checksum is published")
        elif (found := checksum(path)) != link.md5:
            raise UserError(
                f"{path}: its MD5 sum is {found}, not {link.md5}; remove it and download it again"
            )
        else:
            console.print(f"{link.file}: checksum as published")
    present = [name for name, part in entry.parts.items() if _present(entry, name, config.root)]
    if not present:
        entry.home(config.root, entry.default)
    for name in present:
        _verify_part(entry, name, config, console)


def preview(config: Any, console: Console) -> None:
    """Write a contact sheet of a set."""
    images = load_set(
        config.name,
        config.root,
        "name",
        config.size or _size(config.root, config.name),
        memory_limit=0,
    )
    path = config.output or Path(config.name.replace("/", "-") + ".png")
    try:
        console.print(f"wrote {save_contact_sheet(images, path)}")
    except (OSError, ValueError) as error:
        raise UserError(f"output: cannot write {path} ({error})") from error


def find_overlap(config: Any, console: Console) -> None:
    """Print, and write where asked to, what two sets share."""
    size = config.size or _size(config.root, config.first, config.second)

    # Not into memory: what cannot be read must not move the places of the rest, which a config's
    # `exclude` counts.
    def read(name: str, field: str) -> ImageSet:
        return load_set(
            SetSpec(name, name=name, max_unreadable=1), config.root, field, size, memory_limit=0
        )

    first = read(config.first, "first")
    second = first if config.first == config.second else read(config.second, "second")
    found = overlap(first, second, config.distance, config.workers)
    shared = found.first()
    console.print(
        f"{len(found.exact)} exact and {len(found.near)} near pairs (at most {config.distance} bits apart); "
        f"{len(shared)} of the {len(first)} images of {first.name} are in {second.name}"
    )
    for (i, j), bits in list(zip(found.near.tolist(), found.distances.tolist(), strict=True))[:5]:
        console.print(f"near: {first.name} {i}, {second.name} {j}, {bits} bits")
    if config.output:
        _write(config.output, "output", lambda file: _write_pairs(file, found))
        console.print(f"wrote {config.output}")
    if config.exclude:
        _write(
            config.exclude,
            "exclude",
            lambda file: file.writelines(f"{index}\n" for index in shared.tolist()),
        )
        given = os.path.relpath(
            config.exclude, config.root
        )  # configs name files from the data's root
        console.print(
            f"wrote {config.exclude}; in a config: {{source: {config.first}, exclude: {given}}}"
        )


COMMANDS: dict[str, tuple[Callable[[Any, Console], None], str]] = {
    "list": (list_sets, "the catalogue"),
    "download": (download, "download, check and unpack a set"),
    "verify": (verify, "check a set's files and counts"),
    "preview": (preview, "write a contact sheet of a set"),
    "overlap": (find_overlap, "find the images that two sets share"),
}


def _entry(name: str) -> Entry:
    return find_entry(name.partition("/")[0], CATALOGUE)


def _download(link: Link, entry: Entry, folder: Path) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, transient=True) as bars:
        bar = bars.add_task(link.file, total=None)
        path = fetch(
            link.urls,
            folder / link.folder / link.file,
            link.md5,
            f"{entry.manual} ({folder})",
            lambda done, total: bars.update(bar, completed=done, total=total),
        )
    if link.unpack:
        unpack(path, folder / link.folder)


def _present(entry: Entry, part: str, root: Path) -> bool:
    return any((folder / entry.parts[part].marker).exists() for folder in (root / entry.name, root))


def _verify_part(entry: Entry, part: str, config: Any, console: Console) -> None:
    size = config.size or (32 if entry.parts[part].sized else None)
    images = load_set(f"{entry.name}/{part}", config.root, "name", size, memory_limit=0)
    expected, classes = entry.parts[part].count, entry.parts[part].classes
    if expected is not None and len(images) != expected:
        raise UserError(f"{entry.name}/{part}: {len(images)} images, {expected} are expected")
    if classes and images.labels is not None and int(images.labels.max()) + 1 != classes:
        raise UserError(
            f"{entry.name}/{part}: labels reach {images.labels.max()}, {classes} classes are expected"
        )
    unreadable = _unreadable(images)
    if unreadable:
        raise UserError(
            f"{entry.name}/{part}: {len(unreadable)} images cannot be read, the first: {unreadable[0]}"
        )
    console.print(f"{entry.name}/{part}: {len(images)} images, all readable")


def _unreadable(images: ImageSet) -> list[str]:
    starts = range(0, len(images), 256)
    batches = (torch.arange(start, min(start + 256, len(images))) for start in starts)
    return [which for indices in batches for which in images.take(indices).unreadable]


def _size(root: Path, *names: str) -> int | None:
    """Return the size at which to look at sets of which some have images of many sizes; None where
    none has.
    """
    return 96 if any(has_any_size(name, root) for name in names) else None


def _write(path: Path, field: str, write: Callable[[Any], None]) -> None:
    """Write a text file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_place_of(path) as partial, partial.open("w", newline="") as file:
            write(file)
    except OSError as error:
        raise UserError(f"{field}: cannot write {path} ({error.strerror})") from error


def _write_pairs(file: Any, found: Overlap) -> None:
    rows = csv.writer(file)
    rows.writerow(["first", "second", "distance"])
    rows.writerows([i, j, "exact"] for i, j in found.exact.tolist())
    rows.writerows(
        [i, j, bits]
        for (i, j), bits in zip(found.near.tolist(), found.distances.tolist(), strict=True)
    )
