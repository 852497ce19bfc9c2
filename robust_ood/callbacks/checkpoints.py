"""Checkpoints that survive whatever stops the run, and from which it continues bit for bit."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_warn

from robust_ood.arguments import typed
from robust_ood.callbacks.checkpoint_file import CheckpointFile
from robust_ood.callbacks.hyperparameters import tracked_runs
from robust_ood.callbacks.metrics_file import MetricsFile
from robust_ood.callbacks.signals import Signals, Stopped
from robust_ood.errors import UserError
from robust_ood.writing import in_place_of, remove_partial_files

_OURS = re.compile(r"last\.ckpt|last-([1-9][0-9]*)\.ckpt|best\.ckpt|step-[0-9]+\.ckpt")
"""The names that are written here; files of other names are the user's."""


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` every so often and at the end, and `best.ckpt` when the run improves.

    They go into the trainer's root folder; a `fast_dev_run` writes nothing. The last few are kept
    as `last.ckpt` (newest), `last-1.ckpt`, `last-2.ckpt`, ... A file is written under another name,
    flushed to the disk and renamed, so a stop at any moment leaves whole checkpoints. A new run in
    the folder of an old one removes the old one's; the command needs `--replace true` for that.

    A checkpoint is only written where the run can be continued exactly: after an optimiser step,
    never while gradients accumulate, and after the validation where one follows that step. SIGTERM
    and Ctrl-C take effect there: the run writes a checkpoint and raises `Stopped`.

    Args:
        every_n_steps: optimiser steps between two writes of `last.ckpt`, >= 1; None for none.
        every_n_minutes: minutes between two writes, > 0; None for none.
        keep: how many of the newest to keep, >= 1; with 2 or more, a run survives that its newest
            one is damaged.
        keep_every_n_steps: also keep `step-N.ckpt` for good whenever N is a multiple of this; None
            for none.
        monitor: the logged number that `best.ckpt` has the best value of; None writes no
            `best.ckpt`.
        mode: which value is best, as Lightning's callbacks say it: "max", the largest, or "min",
            the smallest.
    """

    @typed
    def __init__(
        self,
        every_n_steps: int | None = 500,
        every_n_minutes: float | None = None,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
    ) -> None:
        every = {"every_n_steps": every_n_steps, "keep_every_n_steps": keep_every_n_steps}
        for field, steps in every.items():
            if steps is not None and steps < 1:
                raise UserError(f"checkpoints.{field}: {steps} is not a number of steps >= 1")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise UserError(
                f"checkpoints.every_n_minutes: {every_n_minutes} is not a number of minutes > 0"
            )
        if keep < 1:
            raise UserError(f"checkpoints.keep: {keep} is not a number of checkpoints >= 1")
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.keep_every_n_steps = keep_every_n_steps
        self.monitor = monitor
        self.mode = mode
        self.config: dict[str, Any] = {}
        """The run's resolved configuration, which each checkpoint carries."""
        self.replaced: list[Path] = []
        """Other files of an older run in the folder, which a new run removes at its start."""
        self.best: float | None = None
        self._signals = Signals()
        self._step = 0
        self._due = False
        self._resumed = False
        self._written = time.monotonic()
        self._rows = 0
        self._pending: dict[str, float] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Write and read files in our way, unless the user brought another."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = CheckpointFile()

    # When
    # ------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Remove an older run's files, or go on with those that the checkpoint knew."""
        self._step = trainer.global_step
        self._due = False
        self._written = time.monotonic()
        if _writes(trainer) and trainer.is_global_zero:
            remove_partial_files(Path(trainer.default_root_dir))
        if not self._resumed and _writes(trainer) and trainer.is_global_zero:
            for path in [*checkpoints_in(Path(trainer.default_root_dir)), *self.replaced]:
                path.unlink(missing_ok=True)
        metrics_file = _metrics_file(trainer)
        if metrics_file is not None:
            metrics_file.truncate(self._rows)
        _log_again(trainer, self._pending)
        self._pending = {}
        self._signals.install()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Write `last.ckpt` when it is due."""
        if trainer.global_step == self._step:
            return  # gradients are accumulating, and a checkpoint does not hold them
        self._step = trainer.global_step
        self._due = self._due or self._is_due(trainer)
        if not _validates_now(trainer):
            self._pending = _unlogged_row(trainer)
            self._settle(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `best.ckpt` when the monitored number improved, and `last.ckpt` when it is due."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._pending = {}
        value = self._monitored(trainer)
        if value is not None and self._is_better(value):
            self.best = value
            self._save(trainer, "best.ckpt")
        self._settle(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `last.ckpt` with the finished network."""
        self._pending = {}
        self._save_last(trainer)
        self._signals.restore()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back."""
        self._signals.restore()

    # What
    # ------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, and how far the metrics file had got."""
        return {
            "best": self.best,
            "monitored": [self.monitor, self.mode],
            "rows": self._rows,
            "pending": self._pending,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        # The best value of one number says nothing of another's.
        if state_dict.get("monitored", [self.monitor, "max"]) == [self.monitor, self.mode]:
            self.best = state_dict["best"]
        self._rows = state_dict["rows"]
        self._pending = state_dict["pending"]
        self._resumed = True

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add by what a resumed run knows that it is the same run: settings, threads, trackers."""
        checkpoint["config"] = self.config
        checkpoint["threads"] = torch.get_num_threads()
        runs = tracked_runs(trainer.loggers)
        if runs:
            checkpoint["tracked_runs"] = runs

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Warn where sums on the CPU will be rounded otherwise than the run's were."""
        before = checkpoint.get("threads")
        now = torch.get_num_threads()
        if before is not None and before != now:
            rank_zero_warn(
                f"the run had {before} CPU threads and now has {now}: it continues, but not bit "
                f"for bit; for that, set OMP_NUM_THREADS={before}"
            )

    def _is_due(self, trainer: Trainer) -> bool:
        if self._for_good(trainer):
            return True
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            return True
        if self.every_n_minutes is None:
            return False
        late = time.monotonic() - self._written >= 60 * self.every_n_minutes
        return _any_rank(trainer, late)

    def _for_good(self, trainer: Trainer) -> bool:
        """Return whether the checkpoint of this step is one of those that are kept for good."""
        every = self.keep_every_n_steps
        return every is not None and trainer.global_step % every == 0

    def _settle(self, trainer: Trainer) -> None:
        """Write a checkpoint that is due, and stop if a signal asked for it."""
        stop = _any_rank(trainer, bool(self._signals.stop))
        if self._due or stop:
            self._save_last(trainer)
        self._signals.run_deferred()
        if stop:
            signum = self._signals.stop or signal.SIGTERM  # another process got the signal
            path = Path(trainer.default_root_dir) / "last.ckpt"
            raise Stopped(signum, trainer.global_step, str(path))

    def _is_better(self, value: float) -> bool:
        """Return whether a value of the monitored number is the best one so far; NaN is none."""
        if math.isnan(value):
            return False
        if self.best is None:
            return True
        return value > self.best if self.mode == "max" else value < self.best

    def _monitored(self, trainer: Trainer) -> float | None:
        if self.monitor is None:
            return None
        metrics = trainer.callback_metrics
        if self.monitor in metrics:
            return float(metrics[self.monitor])
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(self.monitor in getattr(callback, "logs", ()) for callback in callbacks):
            return None  # it will be logged, only not after this validation
        logged = ", ".join(sorted(metrics)) or "nothing"
        raise UserError(f"checkpoints.monitor: {self.monitor!r} is not logged; logged: {logged}")

    def _save_last(self, trainer: Trainer) -> None:
        self._due = False
        self._written = time.monotonic()
        self._save(trainer, "last.ckpt")
        if self._for_good(trainer) and _writes(trainer) and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            _same_file(folder / "last.ckpt", folder / f"step-{trainer.global_step}.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        if not _writes(trainer):
            return
        metrics_file = _metrics_file(trainer)
        self._rows = 0 if metrics_file is None else len(metrics_file.rows)
        folder = Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            trainer.save_checkpoint(folder / name)  # takes part, and writes nothing
            return
        with in_place_of(folder / name) as partial:
            trainer.save_checkpoint(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if name == "last.ckpt":
                self._age(folder)

    def _age(self, folder: Path) -> None:
        """Let each of the newest checkpoints take the place of the next older one."""
        names = ["last.ckpt"]
        for age in range(1, self.keep):
            names.append(f"last-{age}.ckpt")
        for newer, older in reversed(list(pairwise(names))):
            if (folder / newer).exists():
                _same_file(folder / newer, folder / older)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints that a run wrote into a folder, and none of the user's files."""
    return sorted(path for path in folder.glob("*.ckpt") if _OURS.fullmatch(path.name))


@typed
def recent(folder: Path | str) -> list[Path]:
    """Return the paths of `last.ckpt` and the older ones beside it, newest first."""
    folder = Path(folder)
    older = {}
    for path in folder.glob("last-*.ckpt"):
        match = _OURS.fullmatch(path.name)
        if match:
            older[int(match[1])] = path
    return [folder / "last.ckpt", *(older[age] for age in sorted(older))]


def _same_file(source: Path, target: Path) -> None:
    """Make `target` a second name of `source`, or a copy where the file system has no links."""
    with in_place_of(target) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def _metrics_file(trainer: Trainer) -> MetricsFile | None:
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            return logger
    return None


def _writes(trainer: Trainer) -> bool:
    return not trainer.fast_dev_run  # type: ignore[attr-defined]  # set by Lightning's debugging connector


def _any_rank(trainer: Trainer, decision: bool) -> bool:
    """Return whether any process says so; all get the same answer."""
    if trainer.world_size == 1:
        return decision
    return trainer.strategy.reduce_boolean_decision(decision, all=False)


def _validates_now(trainer: Trainer) -> bool:
    """Return whether a validation follows this very step: the checkpoint waits for its rows."""
    loop = trainer.fit_loop
    # Lightning 2.6 has no public way to ask. Its rule has eight settings; a copy would go stale.
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _unlogged_row(trainer: Trainer) -> dict[str, float]:
    """Return this step's row, which Lightning logs only after the checkpoint is written."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a Lightning attribute without a type
    is_logged = bool(every) and trainer.global_step % every == 0
    if not trainer.loggers or not (is_logged or trainer.should_stop):
        return {}
    # Private, as `trainer.logged_metrics` also holds what earlier steps and validations logged.
    metrics = trainer._logger_connector.metrics["log"]
    row = {name: float(value) for name, value in metrics.items()}
    return {**row, "epoch": trainer.current_epoch, "step": trainer.global_step - 1}


def _log_again(trainer: Trainer, row: dict[str, float]) -> None:
    """Log the row that was not logged yet when the checkpoint was written."""
    if not row:
        return
    metrics = {name: value for name, value in row.items() if name != "step"}
    for logger in trainer.loggers:
        logger.log_metrics(metrics, int(row["step"]))
        logger.save()
