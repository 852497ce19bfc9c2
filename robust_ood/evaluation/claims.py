"""How processes that share a folder of results divide the work: one at a time for each task.

A process holds the system's lock of a task while it computes it, so a dead process's task is free
at once. A process that stands still (stopped, or on a machine that does not answer) keeps its
locks: it is told from one that computes for long by its sign of life, a file that a thread touches
every few seconds. After `SILENCE` without one, another process computes the same task. That is
harmless: a cell is a pure function of its key and is written in one move, and whoever comes second
finds it and keeps it.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from robust_ood.errors import UserError
from robust_ood.texts import shortened
from robust_ood.writing import naming

PATIENCE = 60.0
"""Seconds of waiting after which a process says what it waits for."""

SILENCE = 600.0
"""Seconds without a sign of life after which a task is taken over.

A network's file system may show a touched file a minute late; this is far more.
"""

BEAT = 5.0
"""Seconds between two signs of life."""

POLL = 0.1
"""Seconds between two looks at a lock that another process holds."""


@contextmanager
def claim(folder: Path, name: str, title: str, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a task inside the block.

    Gives False where another process holds it and `wait` is False.

    Args:
        folder: of the locks.
        name: the task's, of which files are named.
        title: what processes that wait for the task tell their users.
        wait: until the task is free, or its holder is silent.

    Raises:
        UserError: the file system has no locks.
    """
    acquired = _acquire(folder, name, wait=wait)
    if acquired is None:
        yield False
        return
    lock, sign = acquired
    try:
        with alive(sign, title):
            yield True
    finally:
        lock.release()


@contextmanager
def alive(sign: Path, title: str) -> Iterator[None]:
    """Show others that this process lives inside the block.

    Args:
        sign: the file that says who is at what, and is touched every `BEAT` seconds.
        title: what the process is at.
    """
    began = time.strftime("%Y-%m-%d %H:%M:%S")
    with naming(sign):
        sign.write_text(f"process {platform.node()}:{os.getpid()}, at {title} since {began}")
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(sign, ended), daemon=True, name="sign of life")
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        sign.unlink(missing_ok=True)


def _beat(sign: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):  # a user may have removed it
            os.utime(sign)


class Watch:
    """Watches another process's sign of life, and measures its silence on this one's clock."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign
        self.silence = 0.0
        self._seen: int | None = None
        self._looked = time.monotonic()

    def look(self) -> float:
        """Return the seconds since the process gave a sign of life, as far as this one saw."""
        now = time.monotonic()
        # A pause of this process, or of all at once, is no silence of the other.
        passed = min(now - self._looked, 2 * BEAT)
        self._looked = now
        seen: int | None = None
        with suppress(OSError):
            seen = self.sign.stat().st_mtime_ns
        self.silence += passed
        if seen != self._seen:
            self._seen = seen
            self.silence = 0.0
        return self.silence

    @property
    def was_seen(self) -> bool:
        """Whether there was a sign at the last look."""
        return self._seen is not None

    def describe(self) -> str:
        """Return how long the other process has been silent."""
        if self.silence < 3 * BEAT:
            return "it is alive"
        return f"no sign of life for {_span(self.silence)}"

    def holder(self) -> str:
        """Return who the other process is, and what it is at."""
        with suppress(OSError, ValueError):
            text = shortened(self.sign.read_text(), 300)
            # Names of models and sets are in it, which may be anything.
            printable = "".join(letter for letter in text if letter.isprintable())
            if printable:
                return printable
        return "another process"


def _acquire(folder: Path, name: str, *, wait: bool) -> tuple[FileLock, Path] | None:
    """Return a task's lock, held, and its holder's sign of life; None where it is not to be had."""
    # Whoever takes over from a silent process holds a lock of its own, of the next number, which
    # keeps third processes from doing the same.
    stem = name
    number = 0
    while True:
        sign = folder / f"{stem}.alive"
        path = folder / f"{stem}.lock"
        lock = _try(path)
        if lock is None and wait:
            lock = _wait(path, sign)
        if lock is not None:
            return lock, sign
        if not wait:
            return None
        number += 1
        stem = f"{name}.{number}"


def _try(path: Path) -> FileLock | None:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except NotImplementedError as error:
        raise UserError(
            f"output: {path.parent} is on a file system without locks; take another folder"
        ) from error
    return lock


def _wait(path: Path, sign: Path) -> FileLock | None:
    """Return the lock once it is free, or None once its holder is silent."""
    watch = Watch(sign)
    clock = time.strftime("%H:%M:%S")
    began = time.monotonic()
    has_spoken = False
    while True:
        lock = _try(path)
        if lock is not None:
            return lock
        if watch.look() >= SILENCE:
            say(f"{watch.holder()}: {watch.describe()}; its work is done here")
            return None
        if not has_spoken and time.monotonic() - began >= PATIENCE:
            has_spoken = True
            say(f"waiting since {clock} for {watch.holder()}: {watch.describe()}")
        time.sleep(POLL)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes"


def say(line: str) -> None:
    """Print a line for the user, beside whatever else is shown."""
    print(line, file=sys.stderr, flush=True)
