"""Reading workers leave it to the process that started them when to end."""

from __future__ import annotations

import os
import signal
import threading

_NAMES = ("SIGTERM", "SIGHUP", "SIGINT")


def leave_signals_to_parent(worker: int = 0) -> None:
    """Have this process pass over signals that ask to end, unless its parent sent them.

    Launchers (torchrun, SLURM, a closed terminal) signal a whole group of processes. The parent
    then completes its step, for which it needs the next batch, and writes a checkpoint; a worker
    that obeyed at once would take both away. A worker whose parent is gone ends by itself.

    Args:
        worker: its number, as `DataLoader` passes it on; not used.
    """
    # Python's handlers do not see who sent a signal. Windows and macOS have no other way.
    if not hasattr(signal, "sigwaitinfo"):
        return
    signals = {getattr(signal, name) for name in _NAMES}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_wait, args=(signals,), daemon=True).start()


def _wait(signals: set[signal.Signals]) -> None:
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_pid == os.getppid():
            os._exit(0)  # as torch's own workers do
