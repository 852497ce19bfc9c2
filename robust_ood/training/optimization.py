"""The optimiser and the learning rate's course."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from robust_ood.errors import UserError


@dataclass(frozen=True)
class SGD:
    """SGD with momentum and a learning rate that changes with every step.

    Args:
        learning_rate: highest learning rate.
        momentum: momentum, with Nesterov's correction unless `nesterov` is off.
        weight_decay: L2 penalty on all parameters.
        schedule: "cosine" falls from `learning_rate` to `final_learning_rate` over the whole run
            (the ALOE code's schedule); "milestones" multiplies by `decay` at each of `milestones`;
            "one_cycle" climbs linearly over the first `warmup` share of the run and falls linearly
            to `final_learning_rate`; "constant".
        milestones: shares of the run, in (0, 1).
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "milestones", "one_cycle", "constant"] = "cosine"
    final_learning_rate: float = 1e-6
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    warmup: float = 0.4

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate: {self.learning_rate} is not > 0")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum: {self.momentum} is not in [0, 1)")
        for field in ("weight_decay", "final_learning_rate"):
            if not getattr(self, field) >= 0:
                raise UserError(f"{field}: {getattr(self, field)} is not >= 0")
        if not self.decay > 0:
            raise UserError(f"decay: {self.decay} is not > 0")
        if self.schedule not in ("cosine", "milestones", "one_cycle", "constant"):
            raise UserError(
                f"schedule: {self.schedule!r} is not one of cosine, milestones, one_cycle, constant"
            )
        if any(not 0 < share < 1 for share in self.milestones):
            raise UserError(
                f"milestones: {self.milestones} are not all shares of the run in (0, 1)"
            )
        if not 0 < self.warmup < 1:
            raise UserError(f"warmup: {self.warmup} is not a share of the run in (0, 1)")

    def rate(self, progress: float) -> float:
        """Return the learning rate after a share of the run in [0, 1]."""
        high, low = self.learning_rate, self.final_learning_rate
        if self.schedule == "cosine":
            return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "milestones":
            return float(high * self.decay ** sum(progress >= share for share in self.milestones))
        if self.schedule == "one_cycle":
            climbing, falling = progress / self.warmup, (1 - progress) / (1 - self.warmup)
            return low + (high - low) * min(climbing, falling)
        return high

    def configure(self, net: nn.Module, total_steps: int) -> dict[str, Any]:
        """Return what `LightningModule.configure_optimizers` returns, for a run of `total_steps`
        optimiser steps.
        """
        optimizer = torch.optim.SGD(
            net.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
        )
        whole = max(total_steps, 1)  # `max_steps: 0` is a run, too
        scheduler = _Course(
            optimizer, lambda step: self.rate(min(step / whole, 1.0)) / self.learning_rate
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class _Course(torch.optim.lr_scheduler.LambdaLR):
    """A schedule that goes on where a checkpoint left it under the settings of this run, not those
    in the checkpoint.

    They are the same unless the user says otherwise. Lightning restores the optimiser first.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore how far the run is."""
        super().load_state_dict(state_dict)
        settings = self.optimizer.defaults
        self.base_lrs = [settings["lr"] for _ in self.base_lrs]
        for group, course in zip(self.optimizer.param_groups, self.lr_lambdas, strict=True):
            group.update(
                settings, initial_lr=settings["lr"], lr=settings["lr"] * course(self.last_epoch)
            )
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
