"""Signals that ask a run to stop: noted when they come, handled where a checkpoint is exact."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from robust_ood.arguments import typed


class Stopped(Exception):  # noqa: N818  # a request, not an error
    """The run was asked to stop, wrote a checkpoint and stopped.

    signum: the signal that asked; step: optimiser steps done; checkpoint: the file that continues
    the run.
    """

    def __init__(self, signum: int, step: int, checkpoint: str) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; wrote {checkpoint}"
        )
        self.signum = signum
        self.step = step
        self.checkpoint = checkpoint


class Signals:
    """Notes SIGTERM, SIGHUP, Ctrl-C and a requeue signal until the current step is complete.

    A second Ctrl-C stops at once. SIGHUP, which a closed terminal sends, is left alone where it is
    ignored, as under `nohup`. SIGUSR1 (or SIGUSR2) is only taken over where it has a handler
    already - Lightning's requeues the job under SLURM - and that handler then runs between two
    steps instead of within one.
    """

    @typed
    def __init__(self) -> None:
        self.stop: int = 0
        self.deferred: list[int] = []
        self._originals: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals, if this is Python's main thread, which alone may."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._originals[signum] = signal.signal(signum, self._ask_to_stop)
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) == signal.SIG_DFL:
            self._originals[hangup] = signal.signal(hangup, self._ask_to_stop)
        for signum in (signal.SIGUSR1, signal.SIGUSR2):
            if callable(signal.getsignal(signum)):
                self._originals[signum] = signal.signal(signum, self._defer)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for signum, original in self._originals.items():
            if original is None:  # it was not set from Python
                original = signal.SIG_DFL
            signal.signal(signum, original)
        self._originals = {}

    def run_deferred(self) -> None:
        """Run the handlers whose signals came since the last call."""
        while self.deferred:
            signum = self.deferred.pop(0)
            self._originals[signum](signum, None)

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if self.stop and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.stop = signum

    def _defer(self, signum: int, frame: FrameType | None) -> None:
        self.deferred.append(signum)
