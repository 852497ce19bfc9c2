"""Output folders: checked before any work, so that nothing is lost after it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from robust_ood.errors import UserError


def writable_folder(folder: Path) -> Path:
    """Create the folder if it is missing, make sure that files can be written into it, and return it.

    Raises: `UserError` naming the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(f"output: cannot write into {folder} ({error.strerror})") from error
