"""Checkpoints that survive whatever stops the run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from robust_ood.errors import UserError


class Checkpoints(Callback):
    """Writes `last.ckpt` every so many steps and at the end, and `best.ckpt` when the monitored number improves.

    Both go into the trainer's root folder; a `fast_dev_run` writes nothing.

    A file is written beside its place and then renamed onto it, so a stop at any moment leaves a whole checkpoint.

    Args:
        every_n_steps: optimiser steps between two writes of `last.ckpt`, >= 1.
        monitor: the logged number that `best.ckpt` has the highest value of; None writes no `best.ckpt`.
    """

    def __init__(self, every_n_steps: int = 500, monitor: str | None = None) -> None:
        if every_n_steps < 1:
            raise UserError(f"checkpoints.every_n_steps: {every_n_steps} is not a number of steps >= 1")
        self.every_n_steps, self.monitor = every_n_steps, monitor
        self.best: float | None = None
        self._saved_step = -1

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Write `last.ckpt` when it is due."""
        if trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._saved_step:
            self._save(trainer, "last.ckpt")
            self._saved_step = trainer.global_step

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `best.ckpt` when the monitored number improved."""
        if self.monitor is None or trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise UserError(f"checkpoints.monitor: {self.monitor!r} is not logged; logged: {known}")
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or value > self.best:
            self.best = value
            self._save(trainer, "best.ckpt")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write `last.ckpt` with the finished network."""
        self._save(trainer, "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, so that a resumed run does not overwrite a better checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value so far."""
        self.best = state_dict["best"]

    def _save(self, trainer: Trainer, name: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by Lightning's debugging connector
            return
        folder = Path(trainer.default_root_dir)
        final, partial = folder / name, folder / f".{name}.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, final)
