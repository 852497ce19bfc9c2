"""A run's settings as trackers compare them: a flat table of those that change what it computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.loggers import Logger

Setting = bool | int | float | str

_COMPARED = (
    "averaging",
    "data",
    "experiment",
    "model",
    "net",
    "seed_everything",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.precision",
)
_LEFT_OUT = (
    "data.reading",
    "data.root",
    "data.seed",
    "model.init_args.net",
    "model.init_args.seed",
)
"""Settings that change nothing, or repeat others."""
METRICS = ("val/accuracy", "val/loss", "val/robust_auroc", "train/loss")
"""The logged numbers that TensorBoard's HPARAMS shows beside the settings."""


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the settings that change what a run computes, by dotted name; unset ones left out.

    config: the run's resolved configuration.
    """
    settings: dict[str, Setting] = {}
    for name, value in _flat(config, ""):
        if _within(name, _COMPARED) and not _within(name, _LEFT_OUT) and value is not None:
            short = name.replace(".init_args", "").replace(".class_path", "")
            settings[short] = value if isinstance(value, Setting) else str(value)
    return settings


def tracked_runs(loggers: Sequence[Logger]) -> list[list[str]]:
    """Return the trackers' runs that a resumed run goes on with: class and name of each.

    A logger whose run has no name yet, as in any process but the first, is left out.
    """
    runs = []
    for logger in loggers:
        name = type(logger).__name__
        if name in ("WandbLogger", "MLFlowLogger", "CometLogger") and logger.version:
            runs.append([name, str(logger.version)])
    return runs


def _within(name: str, places: Sequence[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _flat(value: Any, name: str) -> list[tuple[str, Any]]:
    """Return nested settings by dotted name."""
    if not isinstance(value, Mapping):
        return [(name, value)]
    settings = []
    for key, inner in value.items():
        settings += _flat(inner, f"{name}.{key}" if name else str(key))
    return settings
