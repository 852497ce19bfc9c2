"""The one exception that means: the user asked for something that cannot be done."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable

from robust_ood.texts import printable


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the field, the value and what fits.

    The commands print that line and end with exit code 2; from Python it is an ordinary
    `ValueError`. What comes from files and names of others is written out in it, so that no
    terminal obeys it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


class Notice(UserWarning):
    """Something that the user should know of what was read: one line, which the commands print."""


def notify(message: str) -> None:
    """Warn of something in one line, in which nothing from outside is obeyed by a terminal."""
    warnings.warn(printable(" ".join(message.splitlines())), Notice, stacklevel=3)


def unknown_name(field: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not registered, with the nearest known name."""
    known = sorted(known)
    listed = ", ".join(known) or "none"
    return UserError(
        f"{field}: unknown name {_quoted(name)}; {_suggestion(name, known)}known: {listed}"
    )


def unknown_setting(field: str, known: Iterable[str]) -> UserError:
    """Return the error for a setting that does not exist, with the nearest known one.

    Args:
        field: its dotted name.
        known: the dotted names of the settings that exist.
    """
    known = sorted(known)
    advice = _suggestion(field, known).rstrip() or f"known: {', '.join(known[:20])}"
    return UserError(f"{_quoted(field)[1:-1]}: unknown setting; {advice}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like the given one, or None where none is alike."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    given = name.lower()
    near = difflib.get_close_matches(given, by_lower_case, n=3, cutoff=0.4)
    if not near:
        return None

    def likeness(candidate: str) -> tuple[float, int]:
        # Of names that are equally like it, the one that begins as it does.
        ratio = difflib.SequenceMatcher(None, candidate, given).ratio()
        shared = 0
        while candidate[: shared + 1] == given[: shared + 1] and shared < len(given):
            shared += 1
        return ratio, shared

    return by_lower_case[max(near, key=likeness)]


def _quoted(name: str) -> str:
    """Return a name in quotes, without control characters, and not longer than a line."""
    if len(name) > 80:
        name = f"{name[:80]}..."
    return repr(name)


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'pgd'? `, or nothing where no known name is alike."""
    near = nearest(name, known)
    return f"did you mean {near!r}? " if near else ""
