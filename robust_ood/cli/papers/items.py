"""Items: a table or a figure of a paper, one YAML file of `configs/papers/PAPER/` each.

A file says what the item shows, and for both sizes which steps make it, what these need, and which
folders of results the table or the figure is read from. Files share steps by `include`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from robust_ood.cli.configs import included_files, package_folders, read_config
from robust_ood.errors import UserError, nearest

SIZES = ("small", "paper")
KINDS = ("table", "figure")


@dataclass(frozen=True)
class Recipe:
    """How one size of an item is made.

    Args:
        reads: the steps whose results the table or figure shows, in order.
        steps: by name, `run`, a command line, and `each`, values of `<words>` in name and line.
        variables: by name, texts that `${name}` in lines stands for; users may set them.
        needs: variables without a value: what each is, and how to get it.
        data: what has to be below the root: sets of the catalogue, or paths and how to get them.
        stands_for: names in the results, and the papers' names whose place they take; a list of
            two is network and detector.
        averages: by name of a mean, the groups of OOD sets that it is over.
        note: how the size differs from the paper.
        minutes: of the item alone, on one core, as it was measured; None where it was not.
    """

    reads: Sequence[str]
    steps: Mapping[str, Mapping[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    stands_for: Mapping[str, Any] = field(default_factory=dict)
    averages: Mapping[str, Sequence[str]] = field(default_factory=dict)
    note: str = ""
    minutes: float | None = None


@dataclass(frozen=True)
class Item:
    """A table or figure of a paper.

    Args:
        paper: its folder's name, such as "aloe".
        name: "table-1" or "figure-2".
        title: what it shows.
        recipes: by size.
        printed: the paper as `published.yaml` calls it, and the tables whose numbers belong beside.
        metrics: the columns; those that the paper prints by default.
        only: for tables, what rows must agree with, by field of `ResultKey`.
        draw: sections of figures.
        words: what a figure's name and title have to hold, to be one of the item's.
        without: what they may not hold.
    """

    paper: str
    name: str
    title: str
    recipes: Mapping[str, Recipe]
    printed: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)
    draw: Sequence[str] = ()
    words: Sequence[str] = ()
    without: Sequence[str] = ()


@cache
def item_files() -> dict[str, dict[str, Path]]:
    """Return the file of every item, by paper and name."""
    found: dict[str, dict[str, Path]] = {}
    for folder in package_folders():
        for path in sorted((folder / "configs" / "papers").glob("*/*.yaml"), key=_in_order):
            if path.name.startswith(KINDS):
                found.setdefault(path.parent.name, {})[path.stem] = path
        if found:
            break
    return found


def _in_order(path: Path) -> tuple[str, bool, int]:
    """Return paper, whether it is a figure, and the number: tables come first, 2 before 10."""
    kind, _, number = path.stem.partition("-")
    return path.parent.name, kind == "figure", int(number) if number.isdigit() else 0


def find_item(paper: str, name: str) -> Item:
    """Return an item.

    Raises: `UserError` with the nearest name, for a paper or an item that is not known.
    """
    files = item_files()
    if paper not in files:
        raise _unknown("paper", paper, files)
    if name not in files[paper]:
        raise _unknown("item", name, files[paper])
    return read_item(files[paper][name])


def _unknown(field_name: str, name: str, known: Mapping[str, Any]) -> UserError:
    near = nearest(name, known)
    advice = f"did you mean {near!r}? " if near else ""
    return UserError(
        f"{field_name}: unknown name {name[:80]!r}; {advice}known: {', '.join(known)}; "
        "`robust-ood paper list` says what each is"
    )


def read_item(path: Path) -> Item:
    """Return the item of a file and of those that it includes."""
    content: dict[str, Any] = {}
    for file in included_files(path):
        content = _merged(content, read_config(file))
    content.pop("include", None)
    recipes = {}
    for size in SIZES:
        recipes[size] = Recipe(**content.pop(size))
    return Item(path.parent.name, path.stem, recipes=recipes, **content)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return two mappings as one, in which the second counts more, also within their mappings."""
    merged = dict(first)
    for name, value in second.items():
        before = merged.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _merged(before, value)
        merged[name] = value
    return merged
