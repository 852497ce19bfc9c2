"""Bounds on what a command is asked for: names that are names, and numbers that have an end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from robust_ood.errors import UserError
from robust_ood.texts import shown

MOST = {
    "chunk": 10**7,
    "depth": 10**4,
    "devices": 10**4,
    "intervals": 10**6,
    "keep": 10**4,
    "num_classes": 10**6,
    "num_nodes": 10**5,
    "restarts": 10**5,
    "steps": 10**7,
    "width": 10**4,
    "workers": 1024,
}
"""The largest value of settings that cost time or memory, wherever they are: above it, a command
would not end, or not begin."""
LARGEST = 2**63 - 1
"""The largest whole number that arrays and files hold."""
LONGEST_PART = 255
"""Bytes of a file's or folder's name, as file systems take it."""
LONGEST_NAME = 200
"""Bytes of a name that becomes a folder, with room for what is added to it."""


def check_numbers(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a number with which a command would not end.

    Args:
        settings: of a command; attacks, detectors and networks may be nested in them.
    """
    for key, value in _numbers("", settings):
        most = MOST.get(key.rpartition(".")[2], LARGEST)
        if value > most:
            raise UserError(
                f"{key.replace('.init_args', '')}: {shown(value)} is too large; expected a number "
                f"<= {most}"
            )


def _numbers(key: str, value: Any) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in settings, each by its dotted name."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(f"{key}.{name}".lstrip("."), part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(key, part)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield key, value


def check_name(field: str, name: str, instead: str = "") -> None:
    """Raise `UserError` for a name that cannot be one of a folder in another folder.

    Args:
        field: the setting, for messages.
        name: what a user calls something; `aloe/last` is a name, `../aloe` is a path.
        instead: what else the user may have meant.
    """
    if not name.strip():
        raise UserError(f"{field}: {shown(name)} is empty; expected a name{instead}")
    if not name.isprintable():
        raise UserError(f"{field}: {shown(name)} has characters that cannot be shown")
    if name.startswith("/") or {".", ".."} & set(re.split(r"[/\\]", name)):
        raise UserError(f"{field}: {shown(name)} is a path; expected a name{instead}")
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise UserError(f"{field}: {shown(name)} has more than {LONGEST_NAME} bytes{instead}")


def check_path(field: str, path: str) -> None:
    """Raise `UserError` for a text that can be no path, whatever is there.

    Args:
        field: the setting, for messages.
        path: as the user wrote it.
    """
    if not path:
        raise UserError(f"{field}: is empty; expected a path")
    if "\0" in path:
        raise UserError(f"{field}: {shown(path)} has a null character; expected a path")
    for part in path.split("/"):
        if len(part.encode(errors="replace")) > LONGEST_PART:
            raise UserError(
                f"{field}: {shown(path)} has a name of more than {LONGEST_PART} bytes in it"
            )
