"""Output folders: checked before any work, so that nothing is lost after it; made when there is
something to write.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from robust_ood.errors import UserError


def check_writable(folder: Path) -> None:
    """Raise `UserError`, naming the folder and the reason, unless it can be made and files written
    into it.

    Nothing is left behind: the folder itself is not made yet.
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
            f"output: cannot write into {folder} ({error.strerror}); a folder is wanted"
        ) from error
