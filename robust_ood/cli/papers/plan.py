"""The steps of an item as command lines, in the order in which they depend on each other."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from robust_ood.cli.papers.items import Item, Recipe
from robust_ood.errors import UserError, unknown_name

_PLACEHOLDER = re.compile(r"\$\{([\w-]+)\}")
_ROOT = "root"


@dataclass(frozen=True)
class Step:
    """A command that makes one folder.

    Args:
        name: of the folder below the output.
        folder: where its results are.
        command: the first word of `robust-ood ...`.
        arguments: the others.
    """

    name: str
    folder: Path
    command: str
    arguments: tuple[str, ...]

    @property
    def line(self) -> str:
        """The command as a user types it."""
        return shlex.join(["robust-ood", self.command, *self.arguments])


class Plan:
    """The steps of one size of an item.

    Args:
        item: what is made.
        size: "small" or "paper".
        output: the folder below which every size has its own.
        root: the folder of data, where the size needs one.
        given: variables that the user sets.

    Raises:
        UserError: a variable that the item does not have.
    """

    def __init__(
        self,
        item: Item,
        size: str,
        output: Path,
        root: Path | None = None,
        given: Mapping[str, str] | None = None,
    ) -> None:
        self.item = item
        self.recipe: Recipe = item.recipes[size]
        self.folder = output / size
        self._lines = dict(_expanded(self.recipe.steps))
        self._values = self._variables(given or {}, root)

    def _variables(self, given: Mapping[str, str], root: Path | None) -> dict[str, str]:
        """Return the texts of all placeholders that are no steps."""
        values = {name: str(value) for name, value in self.recipe.variables.items()}
        known = {*values, *self.recipe.needs}
        for name in given:
            if name not in known:
                raise unknown_name("set", name, known)
        values.update(given)
        if root is not None:
            values[_ROOT] = str(root)
        return values

    def folder_of(self, step: str) -> Path:
        """Return the folder of a step's results."""
        return self.folder / step

    def value(self, name: str) -> str | None:
        """Return the text that a variable stands for; None where it has none."""
        return self._values.get(name)

    def missing(self) -> list[str]:
        """Return the variables of the item's steps that have no value, in order."""
        missing: dict[str, None] = {}
        for name in self._names():
            for used in _PLACEHOLDER.findall(self._lines[name]):
                self._find_missing(used, missing)
        return list(missing)

    def _find_missing(self, name: str, missing: dict[str, None]) -> None:
        if name in self._lines:
            return
        if name not in self._values:
            missing[name] = None
            return
        for used in _PLACEHOLDER.findall(self._values[name]):
            self._find_missing(used, missing)

    def steps(self) -> list[Step]:
        """Return the steps that the item needs, each after those that it depends on."""
        return [self._step(name) for name in self._names()]

    def _names(self) -> list[str]:
        """Return the names of the item's steps, each after those that it depends on."""
        ordered: dict[str, None] = {}
        for name in self.recipe.reads:
            self._add(name, ordered)
        return list(ordered)

    def _add(self, name: str, ordered: dict[str, None]) -> None:
        if name in ordered:
            return
        for used in self._steps_in(self._lines[name]):
            if used != name:  # a step may name its own folder
                self._add(used, ordered)
        ordered[name] = None

    def _steps_in(self, text: str) -> Iterator[str]:
        """Yield the steps that a text names, also through variables."""
        for name in _PLACEHOLDER.findall(text):
            if name in self._lines:
                yield name
            else:
                yield from self._steps_in(self._values.get(name, ""))

    def _step(self, name: str) -> Step:
        command, *arguments = shlex.split(self._filled(self._lines[name]))
        if "--output" not in arguments:
            arguments += ["--output", str(self.folder_of(name))]
        return Step(name, self.folder_of(name), command, tuple(arguments))

    def _filled(self, text: str) -> str:
        """Return a text with values in the place of its placeholders, also within values."""

        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name in self._lines:
                return str(self.folder_of(name))
            if name not in self._values:
                return name.upper()  # only where the plan is shown: `missing` names it before
            return self._filled(self._values[name])

        return _PLACEHOLDER.sub(value, text)


def _expanded(steps: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield name and line of every step, once for each combination of its `each`."""
    for name, step in steps.items():
        each: Mapping[str, Sequence[Any]] = step.get("each", {})
        for values in product(*each.values()):
            words = dict(zip(each, map(str, values), strict=True))
            yield _replaced(name, words), _replaced(step["run"], words)


def templates(recipe: Recipe) -> dict[str, str]:
    """Return, for every step of a recipe, the name that it has before values take their places."""
    found = {}
    for name, step in recipe.steps.items():
        for expanded, _ in _expanded({name: step}):
            found[expanded] = name
    return found


def _replaced(text: str, words: Mapping[str, str]) -> str:
    """Return a text with values in the place of `<words>`; `<word:a=b,c=d>` chooses by value."""

    def value(found: re.Match[str]) -> str:
        chosen = words[found[1]]
        if found[2] is None:
            return chosen
        choices = dict(choice.split("=", 1) for choice in found[2].split("|"))
        return choices[chosen]

    return re.sub(r"<(\w+)(?::([^>]*))?>", value, text)


def read_variables(texts: Sequence[str]) -> dict[str, str]:
    """Return the variables of `--set NAME=VALUE ...`."""
    given = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"set: expected NAME=VALUE, got {text[:80]!r}")
        given[name] = value
    return given
