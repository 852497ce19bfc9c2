"""What users name, where it meets folders, files and spreadsheets."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from robust_ood.errors import UserError
from robust_ood.texts import shown

LONGEST_FILE_NAME = 120
"""Bytes of a file's name that come from a user's name; file systems allow 255 in all."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet read a cell as a formula."""


def as_path(value: object, field: str) -> Path:
    """Return the path that a text or a path is; `~` is the home folder.

    Args:
        value: what a user gave.
        field: its name in the message.

    Raises:
        UserError: it is no path, is empty, or holds a NUL character.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{field}: expected a path, got {shown(value)}")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise UserError(f"{field}: expected a path, got {shown(value)}")
    path = Path(text)
    with suppress(RuntimeError):  # there is no such user: a name that begins with ~
        path = path.expanduser()
    return path


def file_name(name: str) -> str:
    """Return a name as one part of a path, the same for the same name.

    Signs that paths lack become `_`. A name that is changed, or cut because file systems allow no
    more, ends in a digest, so that different names stay different.
    """
    safe = re.sub(r"[^\w.+() -]", "_", name)
    while len(safe.encode()) > LONGEST_FILE_NAME:
        safe = safe[: max(1, min(LONGEST_FILE_NAME, len(safe) - 1))]
    if safe != name or not safe.strip(". "):
        return f"{safe.strip('. ')}-{digest_of(name)}"
    return safe


def digest_of(name: str) -> str:
    """Return eight characters that tell a name apart from others."""
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=4).hexdigest()


def spreadsheet_cell(value: Any) -> Any:
    """Return a value for a CSV file; a text that a spreadsheet would run begins with an apostrophe.

    Source: OWASP, "CSV Injection". Numbers stay numbers, also negative ones.
    """
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def from_spreadsheet(text: str) -> str:
    """Return the text of which `spreadsheet_cell` made a cell."""
    if text.startswith("'") and text[1:].startswith(_FORMULA):
        return text[1:]
    return text
