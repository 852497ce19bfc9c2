"""The file of a checkpoint: how it is written, and what it must hold for a run to continue."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io import TorchCheckpointIO

from robust_ood.errors import UserError
from robust_ood.models.checkpoints import check_sums

SIZES = "sizes"
"""The entry of a checkpoint that says how many values each of its other entries holds."""

_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]+\.partial")
"""The name of a file that is not complete yet, as `in_place_of` makes it, around the file's own."""

DATA_POSITION = "OODData"
"""The entry that says how far training has read."""


class WriteError(UserError):
    """A file of the run could not be written."""


class CheckpointFile(TorchCheckpointIO):
    """Lightning's way to files, without its detour through the system's temporary folder.

    What is written says how many values each entry holds, by which an entry that was emptied later
    is noticed. What is read is compared with the file's checksums.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            WriteError: there is no room, or no permission, in the file's folder.
        """
        path = Path(path)
        sizes = {str(name): count_values(part) for name, part in checkpoint.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                torch.save({**checkpoint, SIZES: sizes}, file)
        except (OSError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None:
                raise
            name = path.name
            partial = _PARTIAL.fullmatch(name)
            if partial is not None:
                name = partial[1]
            raise WriteError(
                f"output: cannot write the checkpoint {name} into {path.parent} ({reason})"
            ) from error

    def load_checkpoint(self, path: str | Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """Read a checkpoint whose checksums are right.

        Raises:
            UserError: the file's content is not what was written.
        """
        try:
            check_sums(path)
        except FileNotFoundError:
            pass  # Lightning's message is as good
        except Exception as error:
            raise UserError(f"checkpoint: {path} is damaged ({error})") from error
        content: dict[str, Any] = super().load_checkpoint(path, *arguments, **settings)
        return content


def _system_error(error: BaseException) -> str | None:
    """Return what the system said when a write failed, or None where it was not the system.

    torch closes its archive after a failed write, fails once more, and raises that.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    if "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error):
        return os.strerror(errno.ENOSPC)
    return None


def count_values(part: Any) -> int:
    """Return how many numbers, texts and other single values a nested part of a checkpoint has."""
    if isinstance(part, torch.Tensor):
        return part.numel()
    if isinstance(part, Mapping):
        return sum(count_values(value) for value in part.values())
    if isinstance(part, list | tuple):
        return sum(count_values(value) for value in part)
    return 1


def check_parts(content: Mapping[str, Any], path: Path | str) -> None:
    """Refuse a checkpoint of which a part is missing, emptied or no such part.

    Args:
        content: of the file.
        path: what messages call it.

    Raises:
        UserError: names the first such part.
    """
    missing = [name for name in _PARTS if name not in content]
    if missing:
        raise UserError(
            f"ckpt_path: {path} is no checkpoint of a training run: it lacks {', '.join(missing)}"
        )
    for name, is_valid in _PARTS.items():
        if not is_valid(content[name]):
            raise _damaged(path, name)
    sizes = content.get(SIZES)
    if sizes is None:
        return  # written by a release that did not count
    if not isinstance(sizes, Mapping):
        raise _damaged(path, SIZES)
    for name, size in sizes.items():
        if name not in content or count_values(content[name]) != size:
            raise _damaged(path, name)


def _damaged(path: Path | str, part: str) -> UserError:
    return UserError(
        f"ckpt_path: {path} cannot be continued: its {part} is emptied or damaged; take another "
        "checkpoint of the run, such as last-1.ckpt"
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\d+\.\d+", value) is not None


def _is_filled(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _is_position(value: Any) -> bool:
    return _is_filled(value) and all(_is_count(value.get(key)) for key in ("epoch", "position"))


def _are_loops(value: Any) -> bool:
    return _is_filled(value) and _is_filled(value.get("fit_loop"))


def _are_optimizers(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    for state in value:
        if not _is_filled(state) or not isinstance(state.get("state"), Mapping):
            return False
        if not state.get("param_groups"):
            return False
    return True


def _are_schedules(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_filled(state) for state in value)


def _are_callbacks(value: Any) -> bool:
    if not _is_filled(value) or not _is_filled(value.get("Checkpoints")):
        return False
    state = value["Checkpoints"]
    is_best = isinstance(state.get("best"), float | None)
    return is_best and _is_count(state.get("rows")) and isinstance(state.get("pending"), Mapping)


_PARTS: dict[str, Callable[[Any], bool]] = {
    "state_dict": _is_filled,
    "epoch": _is_count,
    "global_step": _is_count,
    "pytorch-lightning_version": _is_version,
    "loops": _are_loops,
    "optimizer_states": _are_optimizers,
    "lr_schedulers": _are_schedules,
    "callbacks": _are_callbacks,
    DATA_POSITION: _is_position,
}
"""What a run continues from, and how each part is told from something else."""
