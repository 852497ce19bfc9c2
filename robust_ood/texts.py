"""A user's values in messages: on one line, printable, and short."""

from __future__ import annotations

from typing import Any

LONGEST_VALUE = 80
"""Characters of a user's value that a message repeats."""


def printable(text: str) -> str:
    r"""Return a text on one line in which what no terminal should obey is written out.

    Names and keys in files of others may hold anything. Control characters become `\x1b`, line
    breaks `\n`, and what turns the reading direction, is invisible or cannot be encoded `\u202e`;
    letters of any script stay. Bytes of a file's name that are not UTF-8 become `\xe9`.
    """
    return "".join(_written_out(character) for character in text)


def _written_out(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # how Python keeps such bytes
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def one_line(text: str) -> str:
    """Return a text without line breaks and repeated spaces."""
    return " ".join(text.split())


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


def radius_text(norm: str, radius: float) -> str:
    """Return norm and radius in words, an Linf radius in 255ths; a free patch needs no radius."""
    if norm.startswith("patch "):
        return norm if radius >= 1 else f"{norm}, {radius * 255:.4g}/255"
    if norm == "Linf":
        return f"{norm} {radius * 255:.4g}/255"
    return f"{norm} {radius:g}"
