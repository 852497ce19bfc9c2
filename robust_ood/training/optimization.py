"""The optimiser and the learning-rate schedule of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from robust_ood.arguments import check_fields
from robust_ood.deprecation import warn_renamed
from robust_ood.errors import UserError
from robust_ood.settings import read_part
from robust_ood.training.schedules import build, build_schedule, class_named

_LARGEST = torch.finfo(torch.float32).max
_SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
_COSINE = {"name": "cosine", "eta_min": 1e-6}
_OPTIMIZER_SETTINGS = ("momentum", "nesterov", "weight_decay")
_SCHEDULER_SETTINGS = {
    "final_learning_rate": "eta_min",
    "milestones": "milestones",
    "decay": "gamma",
    "warmup": "warmup",
}
"""The old names of a schedule's settings, and those of now."""
_OLD_SCHEDULES = {
    "cosine": ("eta_min",),
    "milestones": ("milestones", "gamma"),
    "triangle": ("eta_min", "warmup"),
    "constant": (),
}
"""Which settings the old schedules read; the others were ignored."""


@dataclass(frozen=True)
class Optimization:
    """Any optimiser of torch with any learning-rate schedule of torch, or those of the papers.

    Both are written as a name, or as a mapping with a name and settings: `adamw`, `{name: adamw,
    lr: 1e-3, weight_decay: 0.05}`, `{class_path: torch.optim.AdamW, init_args: {lr: 1e-3}}`. Names
    are torch's class names; case and underscores do not matter, nor the schedules' ending `LR`. A
    class of your own goes by its import path.

    Args:
        learning_rate: highest learning rate, > 0; replaces the optimiser's `lr`.
        optimizer: a class of `torch.optim`. The default is that of the ALOE code: SGD with a
            learning rate of 0.1, Nesterov momentum 0.9 and weight decay 1e-4.
        scheduler: a class of `torch.optim.lr_scheduler`, or `constant`, `cosine`, `milestones`,
            `triangle`, `plateau`; see `robust_ood.training.schedules`. The default is `cosine`, to
            1e-6 over the whole run. `T_max` and `total_steps` are the length of the run unless
            given, `max_lr` the learning rate. `warmup`, in any, is the share of the run over which
            the learning rate first climbs linearly.
        interval: whether the schedule steps after each optimiser step or after each epoch.
        monitor: the logged number that `plateau` reads after each validation that logs it; higher
            is better unless its name ends with `loss`.
        decay_all: whether weight decay also applies to biases and to the scales of normalisation
            layers, which are the parameters of less than two dimensions.
        trainable: what is trained: `all`, `head` (the layer whose output is the logits: a linear
            probe), or a list of names of layers. All else is frozen, and stays in eval mode.
        momentum, nesterov, weight_decay, schedule, final_learning_rate, milestones, decay, warmup:
            deprecated; settings of `optimizer` and `scheduler` now.
    """

    learning_rate: float | None = None
    optimizer: str | dict[str, Any] = field(default_factory=lambda: dict(_SGD))
    scheduler: str | dict[str, Any] = field(default_factory=lambda: dict(_COSINE))
    interval: Literal["step", "epoch"] = "step"
    monitor: str = "val/robust_auroc"
    decay_all: bool = True
    trainable: str | list[str] = "all"

    momentum: float | None = field(default=None, kw_only=True)
    nesterov: bool | None = field(default=None, kw_only=True)
    weight_decay: float | None = field(default=None, kw_only=True)
    schedule: Literal["cosine", "milestones", "one_cycle", "constant"] | None = field(
        default=None, kw_only=True
    )
    final_learning_rate: float | None = field(default=None, kw_only=True)
    milestones: tuple[float, ...] | None = field(default=None, kw_only=True)
    decay: float | None = field(default=None, kw_only=True)
    warmup: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "optimizer", _of_default(self.optimizer, _SGD))
        object.__setattr__(self, "scheduler", _of_default(self.scheduler, _COSINE))
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"learning_rate: {self.learning_rate} is not > 0")
        if self.learning_rate is not None and self.learning_rate > _LARGEST:
            raise UserError(
                f"learning_rate: {self.learning_rate:g} is more than a float32 weight can take"
            )
        if self.interval not in ("step", "epoch"):
            raise UserError(f"interval: {self.interval!r} is neither 'step' nor 'epoch'")
        if not self.trainable:
            raise UserError("trainable: expected all, head or names of layers, got nothing")
        self._rename_optimizer_settings()
        self._rename_scheduler_settings()
        # Mistakes show now, before a run begins.
        self._build([nn.Parameter(torch.zeros(2, 2))], 100)

    def configure(
        self, net: nn.Module, length: int, groups: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """Return what `LightningModule.configure_optimizers` returns.

        Args:
            net: whose parameters are trained.
            length: of the run, in optimiser steps, or epochs where `interval` says so.
            groups: its parameters in groups with settings of their own, as torch takes them.

        Frozen parameters are left out where not all is trained.
        """
        parameters: Any = groups or net.parameters()
        if self.trainable != "all":
            parameters = _unfrozen(groups or [{"params": list(net.parameters())}])
        optimizer, schedule = self._build(parameters, length)
        config: dict[str, Any] = {"scheduler": schedule, "interval": self.interval}
        if isinstance(schedule, ReduceLROnPlateau):
            # `OptimizedModule` steps it before the checkpoint of a validation is written. Lightning
            # would step it later, and forgets that where the run is resumed from the checkpoint.
            config |= {"monitor": self.monitor, "frequency": sys.maxsize}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _build(
        self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], length: int
    ) -> tuple[Optimizer, LRScheduler]:
        name = "optimization.optimizer"
        chosen = read_part(name, self.optimizer)
        settings = dict(chosen.settings)
        if self.learning_rate is not None:
            settings["lr"] = self.learning_rate
        for key, value in settings.items():
            if isinstance(value, int | float) and abs(value) > _LARGEST:
                raise UserError(f"{name}.{key}: {value:g} is more than a float32 weight can take")
        momentum = settings.get("momentum", 0)
        if isinstance(momentum, int | float) and not 0 <= momentum < 1:
            raise UserError(f"{name}.momentum: {momentum} is not in [0, 1)")
        make = class_named(name, chosen.name, _torch_optimizers())
        groups: Any = parameters
        if not self.decay_all:
            groups = _groups(parameters)
        optimizer: Optimizer = build(name, make, groups, settings)
        length = max(length, 1)  # `max_steps: 0` is a run, too
        schedule = build_schedule(
            "optimization.scheduler", self.scheduler, optimizer, length, self.monitor
        )
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # a plateau schedule sets none
        return optimizer, schedule

    def _rename_optimizer_settings(self) -> None:
        optimizer = read_part("optimization.optimizer", self.optimizer)
        settings = dict(optimizer.settings)
        for name in _OPTIMIZER_SETTINGS:
            value = getattr(self, name)
            if value is not None:
                warn_renamed(f"optimization.{name}", f"optimization.optimizer.{name}", stacklevel=5)
                settings[name] = value
                object.__setattr__(self, name, None)
        if settings.get("momentum") == 0 and settings.get("nesterov"):
            settings["nesterov"] = False  # torch refuses the two together
        if settings != optimizer.settings:
            object.__setattr__(self, "optimizer", {"name": optimizer.name, **settings})

    def _rename_scheduler_settings(self) -> None:
        written = read_part("optimization.scheduler", self.scheduler)
        scheduler = {"name": written.name, **written.settings}
        if self.schedule is not None:
            warn_renamed("optimization.schedule", "optimization.scheduler.name", stacklevel=5)
            scheduler = {"name": self.schedule}
            if self.schedule == "one_cycle":
                scheduler = {"name": "triangle"}
            object.__setattr__(self, "schedule", None)
        for old, new in _SCHEDULER_SETTINGS.items():
            value = getattr(self, old)
            if value is not None:
                warn_renamed(f"optimization.{old}", f"optimization.scheduler.{new}", stacklevel=5)
                if new in _OLD_SCHEDULES.get(scheduler["name"], (new,)):
                    scheduler[new] = value
                object.__setattr__(self, old, None)
        if scheduler != {"name": written.name, **written.settings}:
            object.__setattr__(self, "scheduler", scheduler)


def _of_default(part: Any, default: Mapping[str, Any]) -> Any:
    """Return a part; settings without a name are of the default, such as `{lr: 0.01}`."""
    if not isinstance(part, Mapping) or {"name", "class_path"} & set(part):
        return part
    return {**default, **part}


def _torch_optimizers() -> dict[str, Callable[..., Optimizer]]:
    classes: dict[str, Callable[..., Optimizer]] = {}
    for name, member in vars(torch.optim).items():
        if isinstance(member, type) and issubclass(member, Optimizer) and member is not Optimizer:
            classes[name] = member
    return classes


def _unfrozen(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return groups of parameters without those that take no gradient; no group is empty."""
    remaining = []
    for group in groups:
        parameters = [parameter for parameter in group["params"] if parameter.requires_grad]
        if parameters:
            remaining.append({**group, "params": parameters})
    return remaining


def _groups(
    parameters: Iterable[nn.Parameter] | list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return each group of parameters as two, those with and those without weight decay."""
    given = list(parameters)
    if not given or not isinstance(given[0], dict):
        given = [{"params": given}]
    groups: list[dict[str, Any]] = []
    for group in given:
        assert isinstance(group, dict)
        decayed = [parameter for parameter in group["params"] if parameter.ndim >= 2]
        free = [parameter for parameter in group["params"] if parameter.ndim < 2]
        if decayed:
            groups.append({**group, "params": decayed})
        if free:
            groups.append({**group, "params": free, "weight_decay": 0.0})
    return groups
