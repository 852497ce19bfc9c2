"""Learning-rate schedules: the papers' and torch's, by name, as long as the run is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import (
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from robust_ood.errors import UserError
from robust_ood.settings import Part, PartSpec, configured, read_part

# The papers' schedules: functions of the share of the run that is done. torch's CosineAnnealingLR
# and MultiStepLR multiply from step to step instead, so that their last digits differ.


def constant(optimizer: Optimizer) -> LambdaLR:
    """Return a schedule that leaves the learning rate as it is."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, length: int, eta_min: float = 1e-6) -> LambdaLR:
    """Return a schedule that falls from the learning rate to `eta_min`, as the ALOE code's does."""
    _check_minimum(eta_min)

    def rate(high: float, progress: float) -> float:
        return eta_min + (high - eta_min) * 0.5 * (1 + math.cos(math.pi * progress))

    return _schedule(optimizer, length, rate)


def milestones(
    optimizer: Optimizer, length: int, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
) -> LambdaLR:
    """Return a schedule that multiplies by `gamma` at each milestone, a share of the run."""
    if any(not 0 < share < 1 for share in milestones):
        raise UserError(
            f"milestones: expected shares of the run in (0, 1), got {list(milestones)}; "
            "MultiStepLR takes numbers of steps"
        )
    if not gamma > 0:
        raise UserError(f"gamma: {gamma} is not > 0")

    def rate(high: float, progress: float) -> float:
        passed = sum(progress >= share for share in milestones)
        return float(high * gamma**passed)

    return _schedule(optimizer, length, rate)


def triangle(
    optimizer: Optimizer, length: int, eta_min: float = 1e-6, warmup: float = 0.4
) -> LambdaLR:
    """Return a schedule that climbs from `eta_min` over the share `warmup`, and falls again."""
    _check_minimum(eta_min)
    if not 0 < warmup < 1:
        raise UserError(f"warmup: {warmup} is not a share of the run in (0, 1)")

    def rate(high: float, progress: float) -> float:
        climbing = progress / warmup
        falling = (1 - progress) / (1 - warmup)
        return eta_min + (high - eta_min) * min(climbing, falling)

    return _schedule(optimizer, length, rate)


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": constant,
    "cosine": cosine,
    "milestones": milestones,
    "plateau": ReduceLROnPlateau,
    "triangle": triangle,
}
"""Names beside those of torch's classes."""


def class_named(
    field: str, name: str, registry: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """Return a class by its name, or by its import path.

    Args:
        field: the config field, for messages.
        name: `adamw`, `one_cycle`, `OneCycleLR`, or `torch.optim.AdamW`. Case, underscores and the
            ending `LR` do not matter.
        registry: classes by name.

    Raises: `UserError` for an unknown name, with the nearest known one.
    """
    for registered in registry:
        if _plain(registered) == _plain(name):
            name = registered
    return Part(name, {}).maker(field, registry)


def build_schedule(
    field: str, spec: PartSpec, optimizer: Optimizer, length: int, monitor: str
) -> LRScheduler:
    """Return a schedule for an optimiser whose groups hold the highest learning rates.

    Args:
        field: the config field, for messages.
        spec: name and settings. `T_max` and `total_steps` are the length of the schedule, `max_lr`
            the optimiser's learning rate, and `mode` what suits the monitored number, unless given.
            `schedulers`, of a sequential one, are written in the same form, and each is as long as
            its milestones let it be. `warmup` is the share of the run, in [0, 1), over which the
            learning rate first climbs linearly.
        optimizer: whose learning rate follows the schedule.
        length: of the schedule, in its steps, >= 1.
        monitor: the number that a plateau schedule reads.
    """
    part = read_part(field, spec)
    make = class_named(field, part.name, {**_torch_schedules(), **SCHEDULES})
    accepted = signature(make).parameters
    settings = dict(part.settings)
    warmup = 0
    if "warmup" in settings and "warmup" not in accepted:
        warmup = _warmup_steps(field, settings.pop("warmup"), length)
        length = max(length - warmup, 1)
    for name, value in _defaults(optimizer, length, monitor).items():
        if name in accepted:
            settings.setdefault(name, value)
    if make is OneCycleLR and "epochs" in settings:
        del settings["total_steps"]  # torch multiplies `epochs` and `steps_per_epoch`
    if make is SequentialLR:
        settings["schedulers"] = _in_sequence(field, settings, optimizer, length, monitor)
    schedule: LRScheduler = build(field, make, optimizer, settings)
    if warmup:
        return _after_warmup(field, schedule, optimizer, warmup)
    return schedule


def build(field: str, make: Callable[..., Any], first: Any, settings: Mapping[str, Any]) -> Any:
    """Return `make(first, **settings)`; what torch refuses is the user's mistake."""
    try:
        return configured(field, make, first, settings=settings)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: {error}") from error


def _schedule(optimizer: Optimizer, length: int, rate: Callable[[float, float], float]) -> LambdaLR:
    """Return a schedule from the highest learning rate and the share of the run to a rate."""
    high: float = optimizer.defaults["lr"]

    def factor(step: int) -> float:
        return rate(high, min(step / length, 1.0)) / high

    return LambdaLR(optimizer, factor)


def _check_minimum(eta_min: float) -> None:
    if not eta_min >= 0:
        raise UserError(f"eta_min: {eta_min} is not >= 0")


def _defaults(optimizer: Optimizer, length: int, monitor: str) -> dict[str, Any]:
    """Return the settings that depend on the run, by their names in the schedules."""
    return {
        "length": length,
        "T_max": length,
        "total_steps": length,
        "max_lr": optimizer.defaults["lr"],
        "mode": "min" if monitor.endswith("loss") else "max",
    }


def _warmup_steps(field: str, share: Any, length: int) -> int:
    is_number = isinstance(share, int | float) and not isinstance(share, bool)
    if not is_number or not 0 <= share < 1:
        raise UserError(f"{field}.warmup: {share!r} is not a share of the run in [0, 1)")
    return round(float(share) * length)


def _after_warmup(
    field: str, schedule: LRScheduler, optimizer: Optimizer, warmup: int
) -> SequentialLR:
    """Return a schedule that climbs linearly for `warmup` steps and then follows another."""
    if isinstance(schedule, OneCycleLR | ReduceLROnPlateau):
        raise UserError(f"{field}.warmup: cannot precede {type(schedule).__name__}")
    climb = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup)
    return SequentialLR(optimizer, [climb, schedule], milestones=[warmup])


def _in_sequence(
    field: str, settings: Mapping[str, Any], optimizer: Optimizer, length: int, monitor: str
) -> list[LRScheduler]:
    """Return the schedulers of a sequential one, each as long as its milestones let it be."""
    specs = settings.get("schedulers", [])
    bounds = [0, *settings.get("milestones", []), length]
    if len(bounds) != len(specs) + 1:
        raise UserError(f"{field}.milestones: expected one less than there are schedulers")
    schedules = []
    for spec, (start, end) in zip(specs, pairwise(bounds), strict=True):
        schedules.append(
            build_schedule(f"{field}.schedulers", spec, optimizer, max(end - start, 1), monitor)
        )
    return schedules


def _torch_schedules() -> dict[str, Callable[..., LRScheduler]]:
    classes: dict[str, Callable[..., LRScheduler]] = {}
    for name, member in vars(lr_scheduler).items():
        named = name not in ("ChainedScheduler", "LRScheduler") and not name.startswith("_")
        if named and isinstance(member, type) and issubclass(member, LRScheduler):
            classes[name] = member
    return classes


def _plain(name: str) -> str:
    return name.replace("_", "").lower().removesuffix("lr")
