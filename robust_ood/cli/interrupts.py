"""What ends a command early: signals that mean what Ctrl-C does, and the death of its launcher."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP

STOPPED = 130
"""The exit code after an interruption."""

LAUNCHER = "ROBUST_OOD_LAUNCHER"
"""The environment variable in which the first process of a run gives the others its number."""

CHECK = 1.0
"""Seconds between two looks at the launcher."""

GRACE = 60.0
"""Seconds that a process without its launcher has to end in order, before it is ended."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for SIGTERM and SIGHUP inside the block.

    A signal that is ignored stays ignored, as SIGHUP under `nohup` is.
    """
    originals: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in _NAMES:
            signum = getattr(signal, name, None)
            if signum is not None and signal.getsignal(signum) == signal.SIG_DFL:
                originals[signum] = signal.signal(signum, _interrupt)
    try:
        yield
    finally:
        for signum, original in originals.items():
            signal.signal(signum, original)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


class Launcher:
    """The process that started this one as one of several: torchrun, or the first of them.

    A command that was started by a shell has none: it may outlive the shell.

    is_first_process: whether it is a process of the run, too, and not torchrun.
    """

    def __init__(self) -> None:
        parent = os.getppid()
        self.is_first_process = os.environ.get(LAUNCHER) == str(parent)
        is_launcher = self.is_first_process or "TORCHELASTIC_RUN_ID" in os.environ
        self._pid = parent if is_launcher else None

    @property
    def is_gone(self) -> bool:
        """Whether it ended before this process."""
        return self._pid is not None and os.getppid() != self._pid

    @property
    def exists(self) -> bool:
        """Whether there was one when this process began."""
        return self._pid is not None

    def terminate(self, signum: int, frame: FrameType | None) -> None:
        """Take SIGTERM while no one else does: obey it, unless the launcher's end caused it.

        Then this process is ending already, and has a line to say, or has not begun yet.
        """
        if not self.is_gone:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)


@contextmanager
def stopped_without_launcher() -> Iterator[Launcher]:
    """Give the launcher, and send this process SIGTERM where that ends during the block.

    What SIGTERM does is the command's own matter. A process that is not out of the block a minute
    later, because it waits for another one, is ended.
    """
    launcher = Launcher()
    if not launcher.exists:
        yield launcher
        return
    ended = threading.Event()
    is_free = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    is_ours = is_free and threading.current_thread() is threading.main_thread()
    if is_ours:
        signal.signal(signal.SIGTERM, launcher.terminate)
    watch = threading.Thread(target=_watch, args=(launcher, ended), daemon=True, name="launcher")
    watch.start()
    try:
        yield launcher
    finally:
        ended.set()
        watch.join()  # it sends no signal after this
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _watch(launcher: Launcher, ended: threading.Event) -> None:
    while not launcher.is_gone:
        if ended.wait(CHECK):
            return
    os.kill(os.getpid(), signal.SIGTERM)
    if not ended.wait(GRACE):
        print(
            f"stopped: the process that started this one (pid {os.getpid()}) is gone, and another "
            "one does not answer; what is written is kept",
            file=sys.stderr,
            flush=True,
        )
        os._exit(128 + signal.SIGTERM)
