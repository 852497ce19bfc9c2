"""Times training steps of the real command, in turn with whatever it is compared with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer


class Clock(Callback):
    """Lets `rival` run between the training steps, and notes how long each of both takes.

    A step's time reaches from the end of the rival's step to the end of this one: loader,
    augmentation, training step, optimiser, callbacks and logging, those after the step before
    included.

    Class attributes, because the command makes the object: `now` reads the time in seconds, `steps`
    and `rivals` are the times noted in this process.

    Args:
        file: JSON file that the first process writes its times to at the end.
    """

    now: Callable[[], float] = staticmethod(time.perf_counter)
    rival: Callable[[], object] | None = None
    steps: list[float] = []  # noqa: RUF012
    rivals: list[float] = []  # noqa: RUF012

    @classmethod
    def set(cls, rival: Callable[[], object] | None = None, *, processor: bool = False) -> None:
        """Forget all times; `processor`: count this process's processor time, not wall time."""
        cls.now = staticmethod(time.process_time if processor else time.perf_counter)
        cls.rival, cls.steps, cls.rivals = staticmethod(rival) if rival else None, [], []

    def __init__(self, file: str | None = None) -> None:
        self.file = file

    def on_train_start(self, *_: Any) -> None:
        """Begin."""
        self.begin = _finished(self.now)

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the step's time and run the rival's step."""
        end = _finished(self.now)
        self.steps.append(end - self.begin)
        if self.rival is not None:
            self.rival()
        self.begin = _finished(self.now)
        self.rivals.append(self.begin - end)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Write the file."""
        if self.file is not None and trainer.is_global_zero:
            Path(self.file).write_text(json.dumps(self.steps))


def _finished(now: Callable[[], float]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return now()
