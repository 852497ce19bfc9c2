"""The one exception that means: the user asked for something that cannot be done."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. Its message is one line that names the field, the value and what is accepted.

    The commands print that line and end with exit code 2; from Python it is an ordinary `ValueError`.
    """


def unknown_name(field: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not registered, with the nearest known name."""
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.4)
    nearest = next((k for k in known if near and k.lower() == near[0]), None)
    hint = f"did you mean {nearest!r}? " if nearest else ""
    return UserError(f"{field}: unknown name {name!r}; {hint}known: {', '.join(known)}")
