"""Files that are written whole or not at all, whenever the writer is stopped."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file, which replaces `path` at the end of the block.

    After an exception, `path` is as before and the temporary file is removed. No two writers get
    the same temporary file, also on several machines that share the folder.

    Raises: `OSError` naming `path`: for a disk that fills while the block writes, and for a
        symbolic link, a device or another special file, which is never replaced.
    """
    refuse_special(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with naming(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def refuse_special(path: Path) -> None:
    """Raise `OSError` where a path is a symbolic link, a device, a pipe or another special file.

    To replace it would destroy what it is: a link to a folder elsewhere, or `/dev/null` itself.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return  # nothing there, or writing says what is wrong
    if stat.S_ISLNK(mode):
        raise OSError(errno.EEXIST, "is a symbolic link, which is not replaced", str(path))
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EEXIST, "is a special file, which is not replaced", str(path))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system in the block name a file, as those of writing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_partial_files(folder: Path, name: str = "*", older_than: float = 0.0) -> None:
    """Remove what a killed process left of the files that it wrote through `in_place_of`.

    Args:
        folder: where they would have been.
        name: of the files, as a pattern.
        older_than: seconds since the last write to those that are removed.
    """
    newest = time.time() - older_than
    for partial in folder.glob(f".{name}.partial"):
        with suppress(OSError):  # another process removes it, too
            if partial.stat().st_mtime <= newest:
                partial.unlink()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write text or bytes so that readers see the old or the new content and nothing between."""
    if isinstance(content, str):
        content = content.encode()
    with in_place_of(path) as partial:
        partial.write_bytes(content)
