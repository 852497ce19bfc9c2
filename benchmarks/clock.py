"""A callback that notes when each training step ends."""

from __future__ import annotations

import time
from typing import Any

import torch
from pytorch_lightning import Callback

TIMES: list[float] = []


class Clock(Callback):
    """Append the time after each training step to `TIMES`."""

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait for the device, and note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        TIMES.append(time.perf_counter())
