"""Checkpoints that survive whatever stops the run, and from which it continues bit for bit."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from robust_ood.callbacks.metrics_file import MetricsFile
from robust_ood.callbacks.signals import Signals, Stopped
from robust_ood.errors import UserError
from robust_ood.writing import in_place_of

_OURS = re.compile(r"last\.ckpt|last-([1-9][0-9]*)\.ckpt|best\.ckpt|step-[0-9]+\.ckpt")
"""The names that are written here; others are the user's, whatever they begin with."""


class Checkpoints(Checkpoint):
    """Writes `last.ckpt` every so many steps or minutes and at the end, `best.ckpt` when the
    monitored number improves.

    They go into the trainer's root folder; a `fast_dev_run` writes nothing. The last few are kept
    as `last.ckpt` (newest), `last-1.ckpt`, `last-2.ckpt`, ... A file is written beside its place,
    flushed to the disk and renamed onto it, so a stop at any moment leaves whole checkpoints. A new
    run in the folder of an old one replaces it; the command wants `--replace true` for that.

    A checkpoint is only written where the run can be continued exactly: after an optimiser step,
    never while gradients accumulate, and after the validation where one follows that step. SIGTERM
    and Ctrl-C are obeyed there: checkpoint, then `Stopped`.

    Args:
        every_n_steps: optimiser steps between two writes of `last.ckpt`, >= 1; None for none.
        every_n_minutes: minutes between two writes, > 0; None for none.
        keep: how many of the newest to keep, >= 1; with 2 or more a damaged newest one can be done
            without.
        keep_every_n_steps: also keep `step-N.ckpt` for good whenever N is a multiple of this; None
            for none.
        monitor: the logged number that `best.ckpt` has the highest value of; None writes no
            `best.ckpt`.
    """

    def __init__(
        self,
        every_n_steps: int | None = 500,
        every_n_minutes: float | None = None,
        keep: int = 2,
        keep_every_n_steps: int | None = None,
        monitor: str | None = None,
    ) -> None:
        for field, value in (
            ("every_n_steps", every_n_steps),
            ("keep_every_n_steps", keep_every_n_steps),
        ):
            if value is not None and value < 1:
                raise UserError(f"checkpoints.{field}: {value} is not a number of steps >= 1")
        if every_n_minutes is not None and not every_n_minutes > 0:
            raise UserError(
                f"checkpoints.every_n_minutes: {every_n_minutes} is not a number of minutes > 0"
            )
        if keep < 1:
            raise UserError(f"checkpoints.keep: {keep} is not a number of checkpoints >= 1")
        self.every_n_steps, self.every_n_minutes = every_n_steps, every_n_minutes
        self.keep, self.keep_every_n_steps, self.monitor = keep, keep_every_n_steps, monitor
        self.config: dict[str, Any] = {}
        """The run's resolved configuration, which each checkpoint carries."""
        self.replaced: list[Path] = []
        """Further files in the folder that are of an older run: a new one removes them when it
        begins.
        """
        self.best: float | None = None
        self._signals = Signals()
        self._step, self._due, self._resumed, self._written = 0, False, False, time.monotonic()
        self._rows: int = 0
        self._pending: dict[str, float] = {}

    # When
    # ----------------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin a run's files, or take them up where the checkpoint left them."""
        self._step, self._due, self._written = trainer.global_step, False, time.monotonic()
        if not self._resumed and _writes(trainer) and trainer.is_global_zero:
            for path in [*checkpoints_in(Path(trainer.default_root_dir)), *self.replaced]:
                path.unlink(missing_ok=True)
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.truncate(self._rows)
        if self._pending:
            trainer._logger_connector.log_metrics(dict(self._pending))  # type: ignore[arg-type]
            self._pending = {}
        self._signals.install()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Write `last.ckpt` when it is due."""
        if trainer.global_step == self._step:
            return  # gradients are accumulating, and a checkpoint does not hold them
        self._step = trainer.global_step
        self._due = self._due or self._is_due(trainer)
        if not _validates_now(trainer):
            self._pending = _unlogged(trainer)
            self._settle(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `best.ckpt` when the monitored number improved, and `last.ckpt` when it is due."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._pending = {}
        value = self._monitored(trainer)
        if value is not None and (self.best is None or value > self.best):
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
    # ----------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, and how far the metrics file had got."""
        return {"best": self.best, "rows": self._rows, "pending": self._pending}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.best, self._rows, self._pending = (
            state_dict["best"],
            state_dict["rows"],
            state_dict["pending"],
        )
        self._resumed = True

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the configuration, by which a resumed run knows whether it is the same run."""
        checkpoint["config"] = self.config

    def _is_due(self, trainer: Trainer) -> bool:
        by_steps = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        for_good = (
            self.keep_every_n_steps is not None
            and trainer.global_step % self.keep_every_n_steps == 0
        )
        if self.every_n_minutes is None:
            return by_steps or for_good
        late = time.monotonic() - self._written >= 60 * self.every_n_minutes
        return by_steps or for_good or _any_rank(trainer, late)

    def _settle(self, trainer: Trainer) -> None:
        """Write what is due and obey what was asked, at a point from which the run can be
        continued.
        """
        stop = _any_rank(trainer, bool(self._signals.stop))
        if self._due or stop:
            self._save_last(trainer)
        self._signals.run_deferred()
        if stop:
            signum = self._signals.stop or 15
            raise Stopped(
                signum, trainer.global_step, str(Path(trainer.default_root_dir) / "last.ckpt")
            )

    def _monitored(self, trainer: Trainer) -> float | None:
        if self.monitor is None:
            return None
        if self.monitor in trainer.callback_metrics:
            return float(trainer.callback_metrics[self.monitor])
        if any(self.monitor in getattr(callback, "logs", ()) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            return None  # it will be logged, only not after this validation
        known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        raise UserError(f"checkpoints.monitor: {self.monitor!r} is not logged; logged: {known}")

    def _save_last(self, trainer: Trainer) -> None:
        self._due, self._written = False, time.monotonic()
        self._save(trainer, "last.ckpt")
        for_good = (
            self.keep_every_n_steps is not None
            and trainer.global_step % self.keep_every_n_steps == 0
        )
        if for_good and _writes(trainer) and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            _same_file(folder / "last.ckpt", folder / f"step-{trainer.global_step}.ckpt")

    def _save(self, trainer: Trainer, name: str) -> None:
        if not _writes(trainer):
            return
        self._rows = next(
            (len(logger.rows) for logger in trainer.loggers if isinstance(logger, MetricsFile)), 0
        )
        folder = Path(trainer.default_root_dir)
        partial = folder / f".{name}.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            if name == "last.ckpt":
                for age in range(self.keep - 1, 0, -1):
                    newer = folder / (f"last-{age - 1}.ckpt" if age > 1 else "last.ckpt")
                    if newer.exists():
                        _same_file(newer, folder / f"last-{age}.ckpt")
            os.replace(partial, folder / name)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return all checkpoints of the run that a folder holds; files of other names are somebody
    else's.
    """
    return sorted(path for path in folder.glob("*.ckpt") if _OURS.fullmatch(path.name))


def recent(folder: Path) -> list[Path]:
    """Return the places of `last.ckpt` and the older ones beside it, newest first."""
    found = [(_OURS.fullmatch(path.name), path) for path in folder.glob("last-*.ckpt")]
    older = sorted((int(match[1]), path) for match, path in found if match)
    return [folder / "last.ckpt", *(path for _, path in older)]


def _same_file(source: Path, target: Path) -> None:
    """Let `target` be a second name of `source`, or a copy where the file system has no hard
    links.
    """
    with in_place_of(target) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def _writes(trainer: Trainer) -> bool:
    return not trainer.fast_dev_run  # type: ignore[attr-defined]  # set by Lightning's debugging connector


def _any_rank(trainer: Trainer, decision: bool) -> bool:
    """Return whether any process says so; all get the same answer."""
    return (
        decision
        if trainer.world_size == 1
        else trainer.strategy.reduce_boolean_decision(decision, all=False)
    )


def _validates_now(trainer: Trainer) -> bool:
    """Return whether a validation follows this very step: its rows belong to the step, so the
    checkpoint waits.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _unlogged(trainer: Trainer) -> dict[str, float]:
    """Return this step's row, if it has one: Lightning logs it only after the hook that writes the
    checkpoint.
    """
    connector = trainer._logger_connector
    if not connector.should_update_logs or not trainer.loggers:
        return {}
    row = {name: float(value) for name, value in connector.metrics["log"].items()}
    return row | {
        "epoch": trainer.current_epoch,
        "step": trainer.fit_loop.epoch_loop._batches_that_stepped,
    }
