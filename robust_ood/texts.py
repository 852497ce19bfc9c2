"""A user's values in messages: on one line, and short."""

from __future__ import annotations

import re
from typing import Any

LONGEST_VALUE = 80
"""Characters of a user's value that a message repeats."""


def one_line(text: str) -> str:
    """Return a text without line breaks and repeated spaces."""
    return " ".join(text.split())


def printable(text: str) -> str:
    """Return a text that a terminal only shows: control characters as Python writes them.

    Words of more than 300 characters, which are a user's, are cut.
    """
    visible = []
    for character in text:
        if not character.isprintable():
            character = character.encode("unicode_escape").decode()
        visible.append(character)
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:LONGEST_VALUE]}...", "".join(visible))


def shortened(text: str, length: int = LONGEST_VALUE) -> str:
    """Return a text on one line, cut after `length` characters."""
    text = one_line(text)
    return text if len(text) <= length else f"{text[:length]}..."


def shown(value: Any) -> str:
    """Return a user's value for a message, shortened."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return f"an {type(value).__name__} of very many digits"


def first_sentence(error: BaseException, length: int = 200) -> str:
    """Return the beginning of a library's message, or the name of an exception without one."""
    return one_line(str(error)).split(". ")[0][:length] or type(error).__name__
