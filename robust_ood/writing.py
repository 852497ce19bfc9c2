"""Files that are written whole or not at all, whenever the writer is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file, which replaces `path` at the end of the block.

    After an exception, `path` is as before and the temporary file is removed.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write text or bytes so that readers see the old or the new content and nothing between."""
    if isinstance(content, str):
        content = content.encode()
    with in_place_of(path) as partial:
        partial.write_bytes(content)
