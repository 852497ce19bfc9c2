"""Output folders: checked before any work, so that no result is lost for want of a place."""

from __future__ import annotations

import tempfile
from pathlib import Path

from robust_ood.errors import UserError


def check_writable(folder: Path) -> None:
    """Raise `UserError` unless the folder can be made and files can be written into it.

    The folder itself is not made yet.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        if existing == folder:
            with tempfile.TemporaryFile(dir=folder):
                return
        with tempfile.TemporaryDirectory(dir=existing):
            return
    except OSError as error:
        raise UserError(
            f"output: cannot write into {folder} ({error.strerror}); expected a folder"
        ) from error
