"""How long a run trains: what a step takes, what an epoch's beginning takes, and all together."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pytorch_lightning import Callback, LightningModule, Trainer

from robust_ood.arguments import typed
from robust_ood.writing import replace_file

FILE = "stopwatch.json"
"""The file in a run folder."""


class Moment(NamedTuple):
    """Two clocks at one time, in seconds: the wall's, and what this process has computed."""

    wall: float
    processor: float


class Stopwatch(Callback):
    """Writes `stopwatch.json` into the run folder when training ends.

    It holds, by the wall's clock and by the processor's: the seconds of training, validation left
    out; the median seconds of a step; and what an epoch takes beside its steps, such as the mining
    of outliers. The processor's clock counts what this process computes on all its cores: for one
    thread, that is the wall's time on a machine of its own. It sees neither a GPU nor the workers
    of a loader. A resumed run adds to the seconds of its checkpoint.
    """

    @typed
    def __init__(self) -> None:
        self.seconds = [0.0, 0.0]
        self._steps: list[Moment] = []
        self._first_steps: list[Moment] = []
        """The first step of each epoch, with what comes before it."""
        self._is_first = True
        self._last = Moment(0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": list(self.seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the seconds of a checkpoint."""
        self.seconds = list(state_dict["seconds"])

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start."""
        self._last = _now()
        self._is_first = True

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Note that the next step is the first one of its epoch."""
        self._is_first = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Take the time since the last step."""
        taken = self._lap()
        if self._is_first:
            self._first_steps.append(taken)
        else:
            self._steps.append(taken)
        self._is_first = False

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Pause: what came before the validation is training."""
        if not trainer.sanity_checking:
            self._lap()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Go on."""
        self._last = _now()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Count what came after the last step."""
        self._lap()

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the file, also where a resumed run had no step left to train."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        measured = {
            "steps": trainer.global_step,
            "steps_per_epoch": _steps_per_epoch(trainer),
            "wall": self._by_clock(0),
            "processor": self._by_clock(1),
        }
        replace_file(Path(trainer.default_root_dir) / FILE, json.dumps(measured, indent=1) + "\n")

    def _lap(self) -> Moment:
        """Return the time since the last call, and count it."""
        now = _now()
        taken = Moment(now.wall - self._last.wall, now.processor - self._last.processor)
        self._last = now
        self.seconds = [self.seconds[0] + taken.wall, self.seconds[1] + taken.processor]
        return taken

    def _by_clock(self, clock: int) -> dict[str, float]:
        firsts = [taken[clock] for taken in self._first_steps]
        steps = [taken[clock] for taken in self._steps] or firsts
        step = median(steps) if steps else 0.0
        # The run's own first step also waits for what is done once, such as reading the images.
        beginnings = firsts[1:] or firsts
        epoch = median(beginnings) - step if beginnings else 0.0
        return {"seconds": self.seconds[clock], "step": step, "epoch": max(epoch, 0.0)}


def _now() -> Moment:
    return Moment(time.perf_counter(), time.process_time())


def _steps_per_epoch(trainer: Trainer) -> int:
    batches = trainer.num_training_batches
    return max(1, -(-int(batches) // trainer.accumulate_grad_batches))
