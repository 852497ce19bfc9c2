"""The store: what has been computed, under a key of everything that determines it.

A folder holds `cells/KEY.npz`, each written in one move, and `locks/`, by which processes that
share the folder divide the work (see `claims`): what one of them computes, the others leave alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.errors import UserError
from robust_ood.evaluation import claims
from robust_ood.names import as_path
from robust_ood.texts import first_sentence, printable
from robust_ood.writing import remove_partial_files, replace_file

LAYOUT = 1
Arrays = Mapping[str, NDArray[Any]]
_STALE = 600.0
"""Seconds after which a file that is still written belongs to a process that died."""

_REQUIRED = {
    "score": ("scores", "indices"),
    "transfer": ("scores", "indices"),
    "images": ("images", "indices", "labels"),
    "classify": ("scores", "indices"),
    "check": ("warnings",),
    "universal": ("lower", "raise", "warnings"),
    "certify": ("lower", "upper", "clean_lower", "clean_upper", "seconds"),
}
"""What a cell of a stage has to hold, as arrays or in `about`."""

_DAMAGED = (
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    json.JSONDecodeError,
    NotImplementedError,
    RecursionError,
    MemoryError,  # a header that claims more than there is
)


@dataclass(frozen=True)
class Cell:
    """What one task of an evaluation found.

    arrays: `scores (n,)` float32 (higher = more in-distribution; of a classifier 1 where it is
    right, else 0), `indices (n,)` of the images in their set, and under an attack `winners (n,)`,
    positions in `about["members"]`. about: settings, `seconds`, versions, and what is no array.
    """

    arrays: Arrays = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """Cells in memory, for one process."""

    def __init__(self) -> None:
        self.damage: dict[str, str] = {}
        self._cells: dict[str, Cell] = {}

    def read(self, key: str) -> Cell | None:
        """Return a cell, or None where there is none."""
        return self._cells.get(key)

    def has(self, key: str) -> bool:
        """Return whether a cell is there to be read."""
        return self.read(key) is not None

    def write(self, key: str, cell: Cell) -> None:
        """Keep a cell."""
        self._cells[key] = cell

    @contextmanager
    def claim(self, name: str, title: str = "", *, wait: bool) -> Iterator[bool]:
        """Keep others from the task of that name inside the block; gives False if one runs it."""
        yield True

    def path(self, key: str) -> str | None:
        """Return where a cell lies, relative to the folder of results; None if in memory."""
        return None


class FolderStore(Store):
    """Cells in a folder of results, for any number of processes.

    Nothing is made before the first claim.

    Args:
        folder: the folder of results; cells and locks are in its `store/`.

    Raises:
        UserError: the folder holds a store of another layout, or cannot be used.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.folder = as_path(folder, "folder") / "store"
        self._sound: set[str] = set()  # cells never change once they are written
        self._tidied = False
        self._check_layout()

    def read(self, key: str) -> Cell | None:
        """Return a cell, or None where there is none; a damaged file is noted in `damage`."""
        try:
            cell = read_cell(self._file(key), key)
        except FileNotFoundError:
            return None
        except UserError as error:
            self.damage[key] = f"store: {error}; it was computed again"
            return None
        self._sound.add(key)
        return cell

    def has(self, key: str) -> bool:
        """Return whether a cell is there and its file was sound when it was first read."""
        return key in self._sound or self.read(key) is not None

    def write(self, key: str, cell: Cell) -> None:
        """Write a cell in one move: readers see all of it or nothing."""
        content = io.BytesIO()
        # As it will be read: JSON turns keys to texts and tuples to lists.
        facts: dict[str, Any] = json.loads(json.dumps({**cell.about, "key": key}))
        facts["digest"] = _digest(facts, cell.arrays)
        # Text as an array without dimensions, which needs no pickle.
        arrays: dict[str, Any] = {**cell.arrays, "about": np.array(json.dumps(facts))}
        np.savez(content, **arrays)
        path = self._file(key)
        path.parent.mkdir(parents=True, exist_ok=True)  # a user may have removed it
        replace_file(path, content.getvalue())

    @contextmanager
    def claim(self, name: str, title: str = "", *, wait: bool) -> Iterator[bool]:
        """Hold a lock of that name inside the block.

        Gives False where another process holds it and `wait` is False. A process that waits says
        so after a minute, and goes on without the other once that is silent for ten minutes.

        Args:
            name: of the task.
            title: what others tell their users while they wait for it.
            wait: until it is free.
        """
        with claims.claim(self._locks(), name, title or name, wait=wait) as claimed:
            yield claimed

    def path(self, key: str) -> str:
        """Return where a cell lies, relative to the folder of results."""
        return self._file(key).relative_to(self.folder.parent).as_posix()

    def _file(self, key: str) -> Path:
        return self.folder / "cells" / f"{key}.npz"

    def _locks(self) -> Path:
        locks = self.folder / "locks"
        if not self._tidied:
            self._tidied = True
            remove_partial_files(self.folder / "cells", older_than=_STALE)
        # Made last, so that a process that sees it sees the rest.
        if not locks.is_dir():
            (self.folder / "cells").mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / "store.json", json.dumps({"layout": LAYOUT}))
            locks.mkdir(exist_ok=True)
        return locks

    def _check_layout(self) -> None:
        if not self.folder.is_dir():
            return
        names = [entry.name for entry in self.folder.iterdir()]
        if all(name == "cells" or name.startswith(".") for name in names):
            return  # another process is making it
        try:
            layout = json.loads((self.folder / "store.json").read_text()).get("layout")
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"output: {self.folder} is no store of results; take another folder"
            ) from error
        if layout != LAYOUT:
            raise UserError(
                f"output: {self.folder} has layout {layout}, expected {LAYOUT}; take another folder"
            )


def read_cell(path: Path | str, key: str | None = None) -> Cell:
    """Return the cell of a file.

    Raises: `FileNotFoundError`; `UserError` for a file that is damaged or not the cell of that key.
    """
    path = as_path(path, "path")
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        facts = json.loads(str(arrays.pop("about")))
        if facts["key"] != (key or path.stem):
            raise ValueError("of another key")
        _check(facts, arrays)
    except _DAMAGED as error:
        reason = printable(first_sentence(error, 80))
        raise UserError(f"the cell {path} is unreadable ({reason})") from error
    return Cell(arrays, facts)


def _check(about: Mapping[str, Any], arrays: Arrays) -> None:
    """Raise `ValueError` for what is not the content that was written."""
    for name in _REQUIRED.get(str(about.get("stage")), ()):
        if name not in arrays and name not in about:
            raise ValueError(f"it lacks {name}")
    if "scores" in arrays:
        _check_scores(about, arrays)
    # Cells of earlier releases have no digest.
    if "digest" in about and about["digest"] != _digest(about, arrays):
        raise ValueError("its content is not what was written")


def _check_scores(about: Mapping[str, Any], arrays: Arrays) -> None:
    scores = arrays["scores"]
    if scores.ndim != 1 or not np.issubdtype(scores.dtype, np.floating):
        raise ValueError("its scores are not a list of numbers")
    broken = int((~np.isfinite(scores)).sum())
    if broken:
        raise ValueError(f"{broken} of {len(scores)} scores are not finite")
    for name in ("indices", "winners"):
        if name in arrays and arrays[name].shape != scores.shape:
            raise ValueError(f"{len(scores)} scores and {arrays[name].size} {name}")
    if "winners" in arrays and len(scores):
        winners = arrays["winners"]
        if winners.min() < 0 or winners.max() >= len(about["members"]):
            raise ValueError("its winners are no members of the attack")


def _digest(about: Mapping[str, Any], arrays: Arrays) -> str:
    """Return the digest of a cell's content."""
    described = {name: value for name, value in about.items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
