"""How far a run is: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ProgressBar, Timer, TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.texts import one_line

_SHOWN = {
    "train/accuracy": "accuracy",
    "val/accuracy": "validation accuracy",
    "val/robust_auroc": "robust AUROC",
}
"""What a line says of the logged numbers, and in which words."""
_SHORT = {
    "train/loss": "loss",
    "train/accuracy": "acc",
    "val/accuracy": "val",
    "val/robust_auroc": "auroc",
}
"""The same on a bar, which has 80 columns."""


class EpochLines(Callback):
    """Prints one line an epoch, for runs whose output is a file: a job's log, `nohup`, `tee`.

    A line has the epoch, the optimiser step, the epoch's mean training loss, the accuracies, the
    robust AUROC where there is robust validation, the speed and the time that is left at this
    speed. An epoch that takes long also has lines in between. Only the first process prints.

    Args:
        minutes: print at least every so many minutes, > 0.
    """

    @typed
    def __init__(self, minutes: float = 10.0) -> None:
        if not minutes > 0:
            raise UserError(f"minutes: {minutes} is not a number of minutes > 0")
        self.minutes = minutes
        self._loss: Tensor | None = None
        self._steps = 0
        self._images = 0
        self._since = 0.0
        self._printed = 0.0
        self._first_step = 0
        self._begin = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clocks; a resumed run counts its own steps only."""
        self._begin = time.monotonic()
        self._printed = self._begin
        self._since = self._begin  # a run resumed within an epoch does not start that epoch
        self._first_step = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forget the epoch before."""
        self._loss = None
        self._steps = 0
        self._images = 0
        self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count; print where the last line is long ago."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            # Summed on its device: to read it here would wait for the device at every step.
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        self._steps += 1
        self._images += (len(batch.images) + len(batch.outliers)) * trainer.world_size
        if time.monotonic() - self._printed >= 60 * self.minutes:
            self._print(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Print the epoch's line."""
        self._print(trainer)

    @rank_zero_only
    def _print(self, trainer: Trainer) -> None:
        self._printed = time.monotonic()
        print(self.line(trainer), flush=True)

    def line(self, trainer: Trainer) -> str:
        """Return the line of the present moment."""
        now = time.monotonic()
        parts = []
        if self._loss is not None:
            mean = self._loss.item() / self._steps
            if trainer.lightning_module.automatic_optimization:
                mean *= trainer.accumulate_grad_batches  # Lightning has divided by it
            parts.append(f"loss {mean:.4g}")
        metrics = trainer.callback_metrics
        for name, words in _SHOWN.items():
            if name in metrics:
                parts.append(f"{words} {float(metrics[name]):.3f}")
        parts.append(f"{self._images / max(now - self._since, 1e-9):,.0f} images/s")
        left = self._seconds_left(trainer, now)
        if left is not None:
            parts.append(f"{duration(left)} left")
        epochs = trainer.max_epochs
        of = f"/{epochs}" if epochs is not None and epochs > 0 else ""
        head = f"epoch {trainer.current_epoch + 1}{of}, step {trainer.global_step}"
        return f"{head}: {', '.join(parts)}"

    def _seconds_left(self, trainer: Trainer, now: float) -> float | None:
        """Return the seconds that the rest takes at this run's speed, validations included."""
        done = trainer.global_step - self._first_step
        total = trainer.estimated_stepping_batches
        if not done or total in (-1, float("inf")):
            return None
        return (now - self._begin) / done * max(total - trainer.global_step, 0)


class Bar(TQDMProgressBar):
    """Lightning's bar with short names, so that a terminal of 80 columns shows all of it."""

    BAR_FORMAT = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {remaining} {postfix}"

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """Return the numbers that the bar shows."""
        metrics = super().get_metrics(trainer, module)
        short: dict[str, Any] = {}
        for name, value in metrics.items():
            if name == "v_num":
                continue
            short[_SHORT.get(name, name)] = value
        return short


def progress_callbacks(chosen: list[Callback], enabled: bool | None) -> list[Callback]:
    """Return what shows how far a training run is, where the user brings no bar of their own.

    Args:
        chosen: the user's callbacks.
        enabled: the trainer's `enable_progress_bar`; None for its default.
    """
    if enabled is False:
        return []
    if any(isinstance(callback, ProgressBar | EpochLines) for callback in chosen):
        return []
    if sys.stdout.isatty():
        return [Bar()]
    return [EpochLines()]


def why_stopped(trainer: Trainer) -> str | None:
    """Return why a run ended before its last epoch or step, as a line; None where it did not."""
    if not trainer.should_stop:
        return None
    reason = "a callback asked for it"
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # no type in Lightning
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            if callback.stopping_reason.value:
                reason = callback.stopping_reason_message.replace(" Signaling Trainer to stop.", "")
                reason = one_line(reason.replace("Monitored metric ", "")).rstrip(".")
        elif isinstance(callback, Timer) and (callback.time_remaining() or 0.0) <= 0.0:
            reason = f"its time is over (trainer.max_time, {duration(callback.time_elapsed())})"
    epochs = trainer.current_epoch
    return f"stopped early after {epochs} epochs (step {trainer.global_step}): {reason}"


def duration(seconds: float) -> str:
    """Return a time as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}"
