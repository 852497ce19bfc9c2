"""One training at a time in a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from robust_ood.errors import UserError
from robust_ood.writing import naming

LOCK = ".training.lock"
"""The file in a run folder that a training holds; the system frees it when the process dies."""

PATIENCE = 6.0
"""Seconds to wait for the lock. A killed run's loader workers hold it until they notice, in 5 s."""


class RunLock:
    """Keeps other trainings out of a run folder, for as long as this process lives."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def acquire(self, folder: Path) -> None:
        """Hold the lock of a folder, which is made; do nothing where it is held already.

        Of the processes of one run, the first takes it for all.

        Raises:
            UserError: another training holds it.
        """
        if self._lock is not None or not is_first_of_all():
            return
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise UserError(
                f"output: another training is running in {folder}; wait for its end, or choose "
                "another folder"
            ) from error
        except NotImplementedError:
            print(
                f"warning: {folder} is on a file system without locks; see to it that no other "
                "training uses it",
                file=sys.stderr,
            )
            return
        self._lock = lock

    def release(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def is_first_of_all() -> bool:
    """Return whether this is the first process of a run, over all machines."""
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return os.environ[name] == "0"
    places = [os.environ.get(name, "0") for name in ("NODE_RANK", "GROUP_RANK", "LOCAL_RANK")]
    return all(place == "0" for place in places)
