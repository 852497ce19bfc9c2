"""The other processes of a training run: how they are started, watched, and missed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from torch.distributed import DistError

from robust_ood.cli.interrupts import LAUNCHER
from robust_ood.evaluation import claims

GRACE = 20.0
"""Seconds that the first process has to end in order once another one has failed."""

LOOK = 0.5
"""Seconds between two looks at the other processes."""


class PeerLost(Exception):  # noqa: N818  # what happened to another process
    """Another process of the run ended or does not answer.

    code: the exit code of the run, that of a run of one process which ended so.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class ScriptLauncher(_SubprocessScriptLauncher):
    """Starts the other processes as Lightning does, and says how one of them failed.

    Lightning's own observer kills the first process without a word.
    """

    children: list[subprocess.Popen[bytes]]

    def _call_children_scripts(self) -> None:
        os.environ[LAUNCHER] = str(os.getpid())
        super()._call_children_scripts()
        self.children = self.procs
        self.procs = []  # Lightning's observer finds nothing to observe, and ends
        threading.Thread(target=self._observe, daemon=True, name="other processes").start()

    def kill(self, signum: int) -> None:
        """Send a signal to the other processes."""
        for child in getattr(self, "children", ()):
            child.send_signal(signum)  # does nothing where it ended

    def failure(self, patience: float = 0.0) -> PeerLost | None:
        """Return how another process failed.

        Args:
            patience: seconds to wait for it to end, as its connections close before it does.
        """
        deadline = time.monotonic() + patience
        while True:
            for rank, child in enumerate(getattr(self, "children", ()), start=1):
                if child.poll():
                    return _failed(rank, child)
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.1)

    def _observe(self) -> None:
        failure = None
        while failure is None:
            time.sleep(LOOK)
            if all(child.poll() == 0 for child in self.children):
                return
            failure = self.failure()
        # What the first process waits for fails at once on the CPU, and may hang on GPUs.
        time.sleep(GRACE)
        self.kill(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        print(f"error: {failure}", file=sys.stderr, flush=True)
        os._exit(failure.code)


def _failed(rank: int, child: subprocess.Popen[bytes]) -> PeerLost:
    code = child.returncode
    if code > 0:
        return PeerLost(f"process {rank} (pid {child.pid}) ended with exit code {code}", code)
    name = signal.Signals(-code).name
    return PeerLost(f"process {rank} (pid {child.pid}) was ended by {name}", 128 - code)


def watch_children(trainer: Trainer) -> None:
    """Let a trainer that starts other processes start them by our launcher."""
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        # Lightning 2.6 has no public way to choose one.
        trainer.strategy._launcher = ScriptLauncher(
            launcher.cluster_environment, launcher.num_processes, launcher.num_nodes
        )


def lost_peer(error: BaseException, trainer: Trainer) -> PeerLost | None:
    """Return what an error of the communication says of another process; None for other errors."""
    if trainer.world_size == 1:
        return None
    # Of gloo, only the text says where a RuntimeError is from.
    if not isinstance(error, DistError) and "gloo/" not in str(error):
        return None
    failure = None
    launcher = trainer.strategy.launcher
    if isinstance(launcher, ScriptLauncher):
        failure = launcher.failure(patience=5.0)
    return failure or PeerLost("another process of this run ended, or does not answer")


class SignsOfLife(Callback):
    """Says that another process of the run stands still, which all others then wait for.

    Each process touches a file in the run folder, as those of an evaluation do.
    """

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._signs = ExitStack()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin to show that this process lives, and to watch the others."""
        folder = Path(trainer.default_root_dir)
        if trainer.world_size == 1 or not folder.is_dir():
            return
        sign = _sign(folder, trainer.global_rank)
        title = f"training as process {trainer.global_rank} of {trainer.world_size}"
        self._signs.enter_context(claims.alive(sign, title))
        watches = {}
        for rank in range(trainer.world_size):
            if rank != trainer.global_rank:
                watches[rank] = claims.Watch(_sign(folder, rank))
        watching = threading.Thread(
            target=self._watch, args=(trainer.global_rank, watches), daemon=True, name="peers"
        )
        watching.start()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """End both."""
        self._end()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """End both."""
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._signs.close()

    def _watch(self, own: int, watches: dict[int, claims.Watch]) -> None:
        reported: set[int] = set()
        while not self._ended.wait(min(claims.BEAT, claims.PATIENCE)):
            for rank, watch in watches.items():
                silent = watch.look() >= claims.PATIENCE and watch.was_seen
                if silent and rank not in reported:
                    reported.add(rank)
                    # Of those that wait, the first one speaks.
                    if all(lower in reported for lower in range(own)):
                        claims.say(f"waiting for {watch.holder()}: {watch.describe()}")
                elif not silent:
                    reported.discard(rank)


def _sign(folder: Path, rank: int) -> Path:
    return folder / f".process-{rank}.alive"
