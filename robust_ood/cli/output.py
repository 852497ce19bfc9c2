"""Output folders: checked before any work, so that no result is lost for want of a place."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from robust_ood.errors import UserError
from robust_ood.texts import shortened
from robust_ood.writing import refuse_special


def check_writable(folder: Path) -> None:
    """Raise `UserError` unless the folder can be made and files can be written into it.

    The folder itself is not made yet.
    """
    try:
        existing = folder
        if "\0" in str(folder):
            raise OSError(errno.EINVAL, "the name has a null character")
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if existing == folder:
            with tempfile.TemporaryFile(dir=folder):
                return
        with tempfile.TemporaryDirectory(dir=existing):
            return
    except OSError as error:
        raise UserError(
            f"output: cannot write into {shortened(str(folder), 300)} ({error.strerror}); "
            "expected a folder"
        ) from error


def check_file(path: Path, field: str = "output") -> None:
    """Raise `UserError` unless a file can be written there, in place of at most another file."""
    check_writable(path.parent)
    try:
        refuse_special(path)
    except OSError as error:
        raise UserError(f"{field}: {path} {error.strerror}") from error
    if path.is_dir():
        raise UserError(f"{field}: {path} is a folder; expected a file")
