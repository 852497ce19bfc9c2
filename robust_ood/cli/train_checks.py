"""Checks of a training run's settings that are made before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from robust_ood.cli.bounds import check_name
from robust_ood.cli.configs import read_config
from robust_ood.errors import UserError
from robust_ood.texts import shown

_LOWEST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "limit_test_batches": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
}
"""The lowest value that makes sense of each of the trainer's numbers."""
_NOTHING = ("limit_train_batches", "max_epochs", "max_steps", "max_time", "val_check_interval")
"""Settings of the trainer that are not 0: such a run would train nothing, and end as if well."""
_FOLLOWING = {
    ("model", "init_args", "seed"): "seed_everything",
    ("model", "init_args", "net"): "net",
    ("data", "seed"): "seed_everything",
}
"""Settings that are always those of another setting."""


def check_settings(config: Any) -> None:
    """Raise `UserError` for settings that would be ignored, or with which nothing would be done."""
    check_name("experiment", config.experiment, "; --output is the path of the run")
    trainer = config.trainer
    for name, lowest in _LOWEST.items():
        value = trainer.get(name)
        if isinstance(value, int | float) and not value >= lowest:
            raise UserError(f"trainer.{name}: {value} is not >= {lowest}")
    for name in _NOTHING:
        if _is_nothing(trainer.get(name)):
            raise UserError(f"trainer.{name}: {shown(trainer.get(name))} would train nothing")
    devices = str(trainer.get("devices"))
    if re.fullmatch(r"0|-\d+", devices) and devices != "-1":
        raise UserError(
            f"trainer.devices: {devices} is no number of devices; expected one >= 1, -1 for all, "
            "a list of them, or auto"
        )


def _is_nothing(value: Any) -> bool:
    """Return whether a limit is 0, in one of the forms that Lightning reads."""
    if isinstance(value, timedelta):
        return value <= timedelta()
    if isinstance(value, str):
        return bool(re.fullmatch(r"[0:]+", value))
    if isinstance(value, Mapping):
        return not any(value.values())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value == 0 or math.isnan(value)
    return False


def refuse_following(arguments: Sequence[str]) -> None:
    """Raise `UserError` for a setting that would be replaced by the one that it follows.

    Args:
        arguments: as `with_includes` returns them.
    """
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == "-c":
            _refuse_following_in(read_config(Path(value)))
            continue
        name = option.partition("=")[0].lstrip("-")
        for names, leader in _FOLLOWING.items():
            if option.startswith("--") and name in (".".join(names), f"{names[0]}.{names[-1]}"):
                raise _follows(name, leader)


def _refuse_following_in(settings: Mapping[str, Any]) -> None:
    following = {names: _at(settings, names) for names in _FOLLOWING}
    if None not in following.values():
        return  # the resolved config of a run, in which somebody may have changed the leaders
    for names, value in following.items():
        leader = _FOLLOWING[names]
        if value is not None and value != settings.get(leader):
            raise _follows(".".join(names), leader)


def _follows(name: str, leader: str) -> UserError:
    name = name.replace(".init_args", "")
    return UserError(f"{name}: is always that of {leader}; set {leader} instead")


def _at(settings: Any, names: Sequence[str]) -> Any:
    """Return what is at a place in nested settings; None where there is no such place."""
    for name in names:
        if not isinstance(settings, Mapping):
            return None
        settings = settings.get(name)
    return settings


def run_seed(value: bool | int) -> int:
    """Return the seed of all random draws, which has to be one that NumPy accepts, too."""
    if isinstance(value, bool) or not 0 <= value < 2**32:
        raise UserError(
            f"seed_everything: {shown(value)} is not a seed; expected a whole number from 0 to "
            f"{2**32 - 1}"
        )
    return value


def is_refused_by_lightning(error: Exception) -> bool:
    """Return whether Lightning itself raised this, about its settings, not code that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    name = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return name.startswith(("pytorch_lightning.", "lightning_fabric."))
