"""What may be resumed: the newest whole checkpoint, under the settings that made it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robust_ood.callbacks import recent
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
)
"""Settings that may differ, because they do not change what the run computes."""
_RENAMED = {
    "data.memory_limit": "data.reading.memory_limit",
    "data.on_device": "data.reading.on_device",
    "data.workers": "data.reading.workers",
}
"""Settings of older runs, which also work for one more release, by what they are called now."""


def first_process() -> bool:
    """Return whether this process is the one of its machine that speaks to the user."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"


def newest_checkpoint(folder: Path) -> Path:
    """Return the newest readable checkpoint of a run folder, and say so where that is not
    `last.ckpt`.

    Raises: `UserError` of `last.ckpt` where none can be read.
    """
    failure: UserError | None = None
    for path in recent(folder):
        try:
            step = read_checkpoint(path).get("global_step")
        except UserError as error:
            failure = failure or error
            continue
        if failure is not None and first_process():
            print(
                f"warning: {failure}; continuing from {path} (step {step}) instead", file=sys.stderr
            )
        return path
    assert failure is not None
    raise failure


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` naming each setting that differs from those of the resumed run."""
    old = _renamed(_flat(before))
    new = _renamed(_flat(now))
    differing = [
        f"{field} (was {old.get(field)}, now {new.get(field)})"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
        and not any(field == free or field.startswith(f"{free}.") for free in _FREE)
    ]
    if differing:
        raise UserError(
            f"ckpt_path: the run was started with other settings: {', '.join(differing)}; "
            "give --resume_changed true to go on with the new ones"
        )


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
    parts = [
        _flat(value, f"{prefix}.{name}" if prefix else str(name))
        for name, value in settings.items()
    ]
    return {name: value for part in parts for name, value in part.items()}
