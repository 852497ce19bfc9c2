"""Files that readers see whole or not at all, whenever the writer is stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Give the path of a file beside `path` to write, which takes its place at the end; an
    exception leaves none.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def replace_file(path: Path, content: str | bytes) -> None:
    """Write text or bytes so that readers see the old or the new content and nothing between."""
    with in_place_of(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
