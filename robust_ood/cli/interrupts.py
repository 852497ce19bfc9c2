"""Signals that end an evaluation in the way that Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


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
