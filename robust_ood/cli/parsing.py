"""Parsers whose errors say where they were raised, which `messages` turns into one line."""

from __future__ import annotations

from argparse import ArgumentError
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


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


class CommandParser(TracedParser, ArgumentParser):
    """The parser of a command, without shortened options.

    A shortened --config would be read without the files that its file includes.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"exit_on_error": False, "allow_abbrev": False, **settings})
