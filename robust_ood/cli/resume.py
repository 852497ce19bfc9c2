"""What may be resumed: the newest readable checkpoint, under the settings that made it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_ood.attacks.in_loop import comparable
from robust_ood.callbacks import recent
from robust_ood.data.sources.spec import comparable_sets
from robust_ood.errors import UserError
from robust_ood.models import read_checkpoint

_FREE = (
    "checkpoints",
    "ckpt_path",
    "data.reading.on_device",
    "data.reading.workers",
    "data.root",
    "experiment",
    "include",
    "init_from",
    "output",
    "replace",
    "resume_changed",
    "trainer.enable_progress_bar",
    "trainer.logger",
)
"""Settings that may differ, because they do not change what the run computes."""
_RENAMED = {
    "data.memory_limit": "data.reading.memory_limit",
    "data.on_device": "data.reading.on_device",
    "data.workers": "data.reading.workers",
}
"""Settings of older runs, which also work for one more release, by what they are called now."""


_ADDED: dict[str, Any] = {
    "data.channels": 3,
    "model.init_args.gan_optimization.trainable": "all",
    "model.init_args.optimization.trainable": "all",
    "model.init_args.weight_perturbation": 0.0,
    "net.init_args.checkpointed": False,
}
"""Settings that older runs do not have, with the value that they went by."""


def first_process() -> bool:
    """Return whether this process is the one of its machine that prints messages."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest readable checkpoint of a run folder; warn if that is not `last.ckpt`.

    Raises: `UserError` about `last.ckpt` where none can be read.
    """
    failure: UserError | None = None
    for path in recent(folder):
        try:
            step = read_checkpoint(path).get("global_step")
        except UserError as error:
            if failure is None:
                failure = error
            continue
        if failure is not None and first_process():
            print(
                f"warning: {failure}; continuing from {path} (step {step}) instead", file=sys.stderr
            )
        return path
    assert failure is not None
    raise failure


def while_restoring(error: Exception) -> bool:
    """Return whether this was raised while Lightning restored a checkpoint."""
    module = "pytorch_lightning.trainer.connectors.checkpoint_connector"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        is_connector = frame.f_globals.get("__name__") == module
        if is_connector and frame.f_code.co_name.startswith(("restore", "_restore", "resume")):
            return True
    return False


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` naming each setting that differs from those of the resumed run."""
    old = _ADDED | _renamed(_flat(_comparable(before)))
    new = _ADDED | _renamed(_flat(_comparable(now)))
    differing = []
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field) and not _is_free(field):
            differing.append(f"{field} (was {old.get(field)}, now {new.get(field)})")
    if differing:
        raise UserError(
            f"ckpt_path: the run was started with other settings: {', '.join(differing)}; "
            "give --resume_changed true to go on with the new ones"
        )


def _comparable(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a run's settings with attacks and sets in one form, whichever release wrote them."""
    model = settings.get("model")
    data = settings.get("data")
    if isinstance(model, Mapping):
        settings = {**settings, "model": comparable(model)}
    if isinstance(data, Mapping):
        settings = {**settings, "data": {name: comparable_sets(data[name]) for name in data}}
    return settings


def _is_free(field: str) -> bool:
    return any(field == free or field.startswith(f"{free}.") for free in _FREE)


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings under their new names; a value given under an old name counts."""
    renamed = {field: value for field, value in settings.items() if field not in _RENAMED}
    for old, new in _RENAMED.items():
        if old in settings:
            renamed[new] = settings[old]
    return renamed


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names."""
    if not isinstance(settings, Mapping) or not settings:
        return {prefix: settings}
    flat = {}
    for name, value in settings.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        flat.update(_flat(value, path))
    return flat
