"""YAML that a user wrote: read within bounds, and refused where a part of it would be lost.

A parser of YAML reads whatever it is given: lists in lists without end, aliases that stand for a
billion values, and of two values of one key the last. The events of a text tell all of that
before anything is built from it.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from robust_ood.errors import UserError
from robust_ood.texts import one_line, shortened

LARGEST = 4_000_000
"""Bytes of a config file."""
DEEPEST = 50
"""Mappings and lists inside each other."""
MOST_VALUES = 100_000
"""Values of a text, where each alias counts as what it stands for."""
LONGEST_NUMBER = 400
"""Characters of a number: the largest float has 309 digits."""
_NUMBER = re.compile(r"[-+]?[\da-fA-FxX._:]+")

_build = get_loader("yaml")
"""jsonargparse's own, which reads `1e-3` as a number."""
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RefusedTextError(yaml.YAMLError):
    """A text that is not read, though it may be YAML."""


def read_text(path: Path, field: str) -> str:
    """Return the text of a file that a user named, if it is a file of moderate size.

    Args:
        path: the file.
        field: the setting that names it, for messages.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{field}: {shortened(str(path), 150)} is not a file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: the name has a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{field}: cannot read {shortened(str(path), 150)} ({reason})") from error
    if len(content) > LARGEST:
        raise UserError(f"{field}: {path} has more than {LARGEST:,} bytes; is it a config?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{field}: {path} is not YAML (it is not a text in UTF-8)") from error


def load_settings(text: str) -> Any:
    """Return what the text of a config file holds.

    Raises: as `load_yaml`.
    """
    # jsonargparse takes `trainer:` alone for a text; the comment makes it a mapping.
    return load_yaml(f"{text}\n#")


def load_yaml(text: str) -> Any:
    """Return what a YAML text holds, read as jsonargparse reads options.

    Raises:
        yaml.YAMLError: not YAML, a key that is written twice, or a text beyond the bounds.
    """
    check_bounds(text)
    try:
        return _build(text)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # Of values whose tag does not fit, such as `!!int x`.
        raise RefusedTextError(f"a value does not fit its tag: {one_line(str(error))}") from error


def check_bounds(text: str) -> None:
    """Raise `RefusedTextError` for a text that is nested too deep, too long, or loses a value."""
    walk = _Walk()
    # One node has one event, or a start and an end; so has whatever is too much.
    for event in yaml.parse(text, Loader=_Loader):
        walk.take(event)


@dataclass
class _Collection:
    """A mapping or list that is not closed yet."""

    anchor: str | None
    is_mapping: bool
    values: int = 1
    nodes: int = 0
    lines: dict[str, int] = field(default_factory=dict)
    """The line of each key."""


class _Walk:
    """What a text holds up to an event."""

    def __init__(self) -> None:
        self.collections: list[_Collection] = []
        self.anchored: dict[str, int] = {}
        """How many values each anchor stands for."""

    def take(self, event: yaml.Event) -> None:
        """Go on by one event."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            self._open(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            closed = self.collections.pop()
            self._add(closed.anchor, closed.values, line)
        elif isinstance(event, yaml.AliasEvent):
            self._add(None, self._repeated(event.anchor, line), line)
        elif isinstance(event, yaml.ScalarEvent):
            self._check_scalar(event, line)
            self._add(event.anchor, 1, line)

    def _open(self, event: yaml.CollectionStartEvent, line: int) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self.collections.append(_Collection(event.anchor, is_mapping))
        if len(self.collections) > DEEPEST:
            raise RefusedTextError(f"line {line}: more than {DEEPEST} lists or mappings deep")

    def _add(self, anchor: str | None, values: int, line: int) -> None:
        """Count a whole node: a value, a key, or a collection that was closed."""
        if anchor is not None:
            self.anchored[anchor] = values
        if not self.collections:
            return
        outer = self.collections[-1]
        outer.nodes += 1
        outer.values += values
        if outer.values > MOST_VALUES:
            raise RefusedTextError(f"line {line}: more than {MOST_VALUES:,} values")

    def _repeated(self, anchor: str | None, line: int) -> int:
        """Return how many values an alias stands for."""
        for collection in self.collections:
            if collection.anchor == anchor:
                raise RefusedTextError(f"line {line}: *{anchor} contains itself")
        return self.anchored.get(str(anchor), 1)

    def _check_scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        plain = not event.style
        if plain and len(event.value) > LONGEST_NUMBER and _NUMBER.fullmatch(event.value):
            raise RefusedTextError(f"line {line}: a number of {len(event.value):,} characters")
        if not self.collections:
            return
        outer = self.collections[-1]
        is_key = outer.is_mapping and outer.nodes % 2 == 0
        if not is_key or event.value == "<<":
            return
        if event.value in outer.lines:
            raise RefusedTextError(
                f"line {line}: {shortened(event.value)!r} is given twice, "
                f"first in line {outer.lines[event.value]}"
            )
        outer.lines[event.value] = line
