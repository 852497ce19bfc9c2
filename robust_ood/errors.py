"""The one exception that means: the user asked for something that cannot be done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. Its message is one line that names the field, the value and
    what is accepted.

    The commands print that line and end with exit code 2; from Python it is an ordinary
    `ValueError`.
    """


def unknown_name(field: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not registered, with the nearest known name."""
    known = sorted(known)
    return UserError(
        f"{field}: unknown name {name!r}; {_hint(name, known)}known: {', '.join(known) or 'none'}"
    )


def unknown_setting(field: str, known: Iterable[str]) -> UserError:
    """Return the error for a setting that does not exist, given by its dotted name, with the
    nearest known one.
    """
    known = sorted(known)
    return UserError(
        f"{field}: unknown setting; {_hint(field, known) or 'known: ' + ', '.join(known[:20]) + '; '}".rstrip(
            "; "
        )
    )


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like the given one, or None where none is alike."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.4)
    return by_lower_case[near[0]] if near else None


def _hint(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"did you mean {near!r}? " if near else ""
