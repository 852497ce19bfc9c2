"""`robust-ood data`: list, download, verify and preview data sets, and compare two of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.parsing import CommandParser
from robust_ood.data import CATALOGUE, EMBEDDED, GROUPS, ImageSet, SetSpec, load_set
from robust_ood.data.catalogue import CatalogueEntry, Link, find_entry
from robust_ood.data.catalogue.download import checksum, fetch
from robust_ood.data.catalogue.unpack import unpack
from robust_ood.data.named import needs_size
from robust_ood.data.overlap import Overlap, overlap
from robust_ood.data.preview import save_contact_sheet
from robust_ood.data.sources.spec import located
from robust_ood.errors import UserError
from robust_ood.writing import in_place_of

_SIZE = 96  # pixels, to look at images that may have any size
_VERIFIED_SIZE = 32  # pixels; every image is read, so smaller is faster
_BLOCK = 256  # images read at a time
_NEAR_PAIRS_SHOWN = 5


def parser() -> CommandParser:
    """Return the parser of the data command."""
    main = CommandParser(
        prog="robust-ood data",
        description="List, download, verify, preview and compare data sets.",
    )
    commands = main.add_subcommands()
    for name, (_, summary) in COMMANDS.items():
        command = CommandParser(description=summary)
        _add_arguments(command, name)
        commands.add_subcommand(name, command, help=summary)
    return main


def run(arguments: Sequence[str]) -> int:
    """Run one of the data commands and return the exit code."""
    config = parse_arguments(parser(), arguments)
    command, _ = COMMANDS[config.subcommand]
    settings = config[config.subcommand]
    for name in ("root", "output", "exclude"):
        if settings.get(name) is not None:
            settings[name] = _path(name, settings[name])
    command(settings, Console(soft_wrap=True))
    return 0


def _path(field: str, text: str) -> Path:
    """Return the path that an option gives, with `~` for the user's home."""
    if not text:
        raise UserError(f"{field}: is empty; expected a path")
    return located("", text)


def list_sets(config: Any, console: Console) -> None:
    """Print the catalogue, the embedded sets and the groups."""
    for entry in CATALOGUE.values():
        _print_entry(entry, console)
    console.print(f"\nembedded, no download: {', '.join(EMBEDDED)}\n")
    for name, groups in GROUPS.items():
        near = ", ".join(groups.near) or "none"
        far = ", ".join(groups.far)
        console.print(f"OOD for {name}: near {near}; far {far}")


def download(config: Any, console: Console) -> None:
    """Download a set, and its OOD test sets where asked to; check and unpack them."""
    entry = _find_entry(config.name)
    ood_sets: tuple[str, ...] = ()
    if config.ood:
        if entry.name not in GROUPS:
            raise UserError(
                f"ood: no OOD test sets are known for {entry.name}; known: {', '.join(GROUPS)}"
            )
        groups = GROUPS[entry.name]
        ood_sets = (*groups.near, *groups.far)
    # The OOD test sets of a set that cannot be downloaded are still worth downloading.
    if entry.links or not ood_sets:
        _download_entry(entry, config.root, console)
    for name in ood_sets:
        _download_entry(CATALOGUE[name], config.root, console)


def verify(config: Any, console: Console) -> None:
    """Check a set's archives against their checksums and its parts against their expected counts.

    Every image is read.
    """
    entry = _find_entry(config.name)
    for link in entry.links:
        _verify_archive(link, config.root / entry.name, console)
    present = [name for name in entry.parts if entry.has(config.root, name)]
    if not present:
        entry.home(config.root, entry.default)  # raises, and says how to get the set
    for name in present:
        _verify_part(entry, name, config, console)


def preview(config: Any, console: Console) -> None:
    """Write a contact sheet of a set."""
    size = config.size or _size_to_show(config.root, config.name)
    images = load_set(config.name, config.root, "name", size, memory_limit=0)
    path = config.output or Path(config.name.replace("/", "-") + ".png")
    try:
        console.print(f"wrote {save_contact_sheet(images, path)}")
    except (OSError, ValueError) as error:
        raise UserError(f"output: cannot write {path} ({error})") from error


def find_overlap(config: Any, console: Console) -> None:
    """Print what two sets share, and write it where asked to."""
    size = config.size or _size_to_show(config.root, config.first, config.second)
    first = _load_to_compare(config.first, "first", config.root, size)
    second = first
    if config.second != config.first:
        second = _load_to_compare(config.second, "second", config.root, size)
    pairs = overlap(first, second, config.distance, config.workers)
    shared = pairs.first().tolist()
    console.print(
        f"{len(pairs.exact)} exact and {len(pairs.near)} near pairs "
        f"(at most {config.distance} bits apart); "
        f"{len(shared)} of the {len(first)} images of {first.name} are in {second.name}"
    )
    for i, j, bits in list(_near_rows(pairs))[:_NEAR_PAIRS_SHOWN]:
        console.print(f"near: {first.name} {i}, {second.name} {j}, {bits} bits")
    if config.output:
        _write(config.output, "output", lambda file: _write_pairs(file, pairs))
        console.print(f"wrote {config.output}")
    if config.exclude:
        lines = "".join(f"{index}\n" for index in shared)
        _write(config.exclude, "exclude", lambda file: file.write(lines))
        # Configs name files relative to the data's root.
        relative = os.path.relpath(config.exclude, config.root)
        console.print(
            f"wrote {config.exclude}; in a config: {{source: {config.first}, exclude: {relative}}}"
        )


COMMANDS: dict[str, tuple[Callable[[Any, Console], None], str]] = {
    "list": (list_sets, "the catalogue"),
    "download": (download, "download, check and unpack a set"),
    "verify": (verify, "check a set's files and counts"),
    "preview": (preview, "write a contact sheet of a set"),
    "overlap": (find_overlap, "find the images that two sets share"),
}


def _add_arguments(command: CommandParser, name: str) -> None:
    add = command.add_argument
    if name in ("download", "verify", "preview"):
        add("name", type=str, help="data set, or data set/part")
    if name == "overlap":
        add("first", type=str, help="data set, file or folder, named as in configs")
        add("second", type=str, help="the set to compare it with")
    if name != "list":
        add("--root", type=str, default="data", help="folder of the data")
    if name == "download":
        add("--ood", type=bool, default=False, help="also its near and far OOD test sets")
    if name in ("preview", "overlap", "verify"):
        add("--size", type=int | None, default=None, help="side in pixels of images of many sizes")
    if name == "preview":
        add("--output", type=str | None, default=None, help="picture (default: NAME.png)")
    if name == "overlap":
        add("--distance", type=int, default=4, help="bits of the perceptual hash; -1: exact only")
        add("--workers", type=int, default=0, help="processes that read files")
        add("--output", type=str | None, default=None, help="CSV of the pairs")
        add("--exclude", type=str | None, default=None, help="file of the first set's indices")


def _find_entry(name: str) -> CatalogueEntry:
    return find_entry(name.partition("/")[0], CATALOGUE)


def _print_entry(entry: CatalogueEntry, console: Console) -> None:
    counts = []
    for name, subset in entry.parts.items():
        counts.append(f"{name} ({subset.count or 'most'} images)")
    if not entry.links:
        how = "by hand"
    elif all(link.md5 for link in entry.links):
        how = "checked"
    else:
        how = "no checksum"
    roles = " and ".join(entry.roles)
    console.print(f"[bold]{entry.name}[/bold]: {entry.title}, {roles}; {', '.join(counts)}")
    console.print(f"    download: {how}; licence: {entry.licence}; {entry.homepage}")
    if entry.note:
        console.print(f"    {entry.note}")


def _download_entry(entry: CatalogueEntry, root: Path, console: Console) -> None:
    folder = root / entry.name
    if not entry.links:
        raise UserError(
            f"name: {entry.name} cannot be downloaded for you ({entry.licence}); "
            f"by hand: {entry.manual}"
        )
    console.print(f"{entry.title}: {entry.homepage}; licence: {entry.licence}")
    for link in entry.links:
        _download_link(link, entry, folder)
        if link.md5 is None:
            console.print(f"{link.file}: no checksum is published; only its length was checked")
    console.print(f"{entry.name}: in {folder}")


def _download_link(link: Link, entry: CatalogueEntry, folder: Path) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    target = folder / link.folder / link.file
    with Progress(*columns, transient=True) as bars:
        bar = bars.add_task(link.file, total=None)

        def report(received: int, total: int | None) -> None:
            bars.update(bar, completed=received, total=total)

        path = fetch(link.urls, target, link.md5, f"{entry.manual} ({folder})", report)
    if link.unpack:
        unpack(path, folder / link.folder)


def _verify_archive(link: Link, folder: Path, console: Console) -> None:
    path = folder / link.folder / link.file
    if not path.is_file():
        console.print(f"{link.file}: not present (removed after unpacking, or stored elsewhere)")
        return
    if link.md5 is None:
        console.print(f"{link.file}: present; no checksum is published")
        return
    actual = checksum(path)
    if actual != link.md5:
        raise UserError(
            f"{path}: its MD5 sum is {actual}, not {link.md5}; remove it and download it again"
        )
    console.print(f"{link.file}: checksum as published")


def _verify_part(entry: CatalogueEntry, name: str, config: Any, console: Console) -> None:
    expected = entry.parts[name]
    size = config.size
    if not size and expected.sized:
        size = _VERIFIED_SIZE
    title = f"{entry.name}/{name}"
    images = load_set(title, config.root, "name", size or None, memory_limit=0)
    if expected.count is not None and len(images) != expected.count:
        raise UserError(f"{title}: expected {expected.count} images, found {len(images)}")
    if expected.classes and images.labels is not None:
        largest = int(images.labels.max())
        if largest + 1 != expected.classes:
            raise UserError(f"{title}: expected {expected.classes} classes, labels reach {largest}")
    unreadable = list(_unreadable(images))
    if unreadable:
        raise UserError(
            f"{title}: {len(unreadable)} images cannot be read, the first: {unreadable[0]}"
        )
    console.print(f"{title}: {len(images)} images, all readable")


def _unreadable(images: ImageSet) -> Iterator[str]:
    for start in range(0, len(images), _BLOCK):
        indices = torch.arange(start, min(start + _BLOCK, len(images)))
        yield from images.take(indices).unreadable


def _load_to_compare(name: str, field: str, root: Path, size: int | None) -> ImageSet:
    """Return a set to look for overlap in.

    It is not read into memory: images that cannot be read must not move the indices of the rest,
    which a config's `exclude` counts.
    """
    spec = SetSpec(name, name=name, max_unreadable=1)
    return load_set(spec, root, field, size, memory_limit=0)


def _size_to_show(root: Path, *names: str) -> int | None:
    """Return a size for sets some of which have images of many sizes; None where none has."""
    for name in names:
        if needs_size(name, root):
            return _SIZE
    return None


def _near_rows(pairs: Overlap) -> Iterator[tuple[int, int, int]]:
    for (i, j), bits in zip(pairs.near.tolist(), pairs.distances.tolist(), strict=True):
        yield i, j, bits


def _write(path: Path, field: str, write: Callable[[Any], None]) -> None:
    """Write a text file, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_place_of(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            write(file)
    except OSError as error:
        raise UserError(f"{field}: cannot write {path} ({error.strerror})") from error


def _write_pairs(file: Any, pairs: Overlap) -> None:
    rows = csv.writer(file)
    rows.writerow(["first", "second", "distance"])
    for first, second in pairs.exact.tolist():
        rows.writerow([first, second, "exact"])
    rows.writerows(_near_rows(pairs))
