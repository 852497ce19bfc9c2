"""Parsers whose errors say where they were raised, which `messages` turns into one line.

What they are given is first brought into a form that jsonargparse can read: an empty section of a
config means the default, a file in place of a section is read within bounds, and whatever else
stands in place of a section is refused here.
"""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from robust_ood.cli.configs import settings_of
from robust_ood.cli.sections import Sections


class ParserError(ArgumentError):
    """What a parser refused.

    Args:
        message: the parser's own words.
        parser: the command's, a sub-command's, or that of a class that a setting names.
    """

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(None, message)
        self.parser = parser


class TracedParser:
    """A parser that raises `ParserError`, as do those that it makes for nested classes."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `ParserError` from its cause."""
        raise ParserError(message, self) from ex  # type: ignore[arg-type]

    def parse_args(
        self, args: Sequence[str] | None = None, *arguments: Any, **settings: Any
    ) -> Namespace:
        """Return the settings of a command line, with files in place of sections read."""
        if args is not None:
            args = Sections(self).inlined(args)
        return super().parse_args(args, *arguments, **settings)  # type: ignore[misc,no-any-return]

    def parse_string(self, content: str, path: Any = "", **settings: Any) -> Namespace:
        """Return the settings of a config's text, without its empty sections."""
        given = settings_of(content, f"config: {path}".rstrip(": "))
        text = yaml.safe_dump(Sections(self).filled(given), sort_keys=False, allow_unicode=True)
        return super().parse_string(text, path, **settings)  # type: ignore[misc,no-any-return]

    def parse_object(self, obj: Any, *arguments: Any, **settings: Any) -> Namespace:
        """Return the settings of a class that a config names, without its empty sections."""
        return super().parse_object(  # type: ignore[misc,no-any-return]
            Sections(self).filled(obj), *arguments, **settings
        )


class CommandParser(TracedParser, ArgumentParser):  # type: ignore[misc]  # any arguments
    """The parser of a command, without shortened options.

    A shortened --config would be read without the files that its file includes.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"exit_on_error": False, "allow_abbrev": False, **settings})
