"""A network on its own: plain weights, and a small JSON file that says what they are weights of."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models.checkpoints import load_weights, read_checkpoint
from robust_ood.models.description import describe, rebuild
from robust_ood.writing import in_place_of, replace_file

DESCRIPTION = "network.json"
SCHEMA = 1
Format = Literal["pt", "safetensors"]
_FIELDS = ("num_classes", "mean", "std")


def export(
    net: nn.Module,
    folder: Path | str,
    format: Format = "pt",  # noqa: A002  # the name that users know
    training: Mapping[str, Any] | None = None,
    class_names: tuple[str, ...] = (),
) -> Path:
    """Write a network of ours as `weights.pt` or `weights.safetensors` with `network.json`, and
    return the folder.

    The weights are a plain state dict, on the CPU, contiguous, without any prefix; normalisation is
    among its buffers. Each file is written whole or not at all, the JSON file last.

    Args:
        net: one of the networks that a checkpoint can describe.
        folder: made if it is not there.
        format: of the weights; "safetensors" needs that package.
        training: plain values on what trained it, such as `{"method": "ALOE"}`.
        class_names: one name for each class, or none.

    Raises:
        UserError: a network of somebody else's code, an unknown format, or a folder that cannot be
            written.
    """
    description = describe(net)
    if description is None:
        raise UserError(
            f"net: {type(net).__name__} is not one of this project's networks, which alone an export can describe; "
            "save its state_dict() and name its class with --net"
        )
    settings = dict(description["settings"])
    about = {
        "schema": SCHEMA,
        "architecture": description["name"],
        **{field: settings.pop(field) for field in _FIELDS},
        "settings": settings,
        "class_names": list(class_names),
        "training": dict(training or {}),
        "weights": f"weights.{format}",
    }
    state = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    # Written by us as a whole: on a full disk, each library raises something else.
    content = _serialised(format, state)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with in_place_of(folder / DESCRIPTION) as partial:
            partial.write_text(json.dumps(about, indent=2) + "\n")
            replace_file(folder / str(about["weights"]), content)
    except OSError as error:
        raise UserError(
            f"output: cannot write into {folder} ({error.strerror or error})"
        ) from error
    return folder


def find_description(path: Path) -> Path | None:
    """Return the JSON file that describes what a path names: itself, one in it, or the one beside
    it that names it.
    """
    if path.name == DESCRIPTION and path.is_file():
        return path
    if path.is_dir():
        return path / DESCRIPTION if (path / DESCRIPTION).is_file() else None
    beside = path.with_name(DESCRIPTION)
    try:
        about = json.loads(beside.read_text())
    except (OSError, ValueError):  # none, or a file of somebody else's that has the name
        return None
    return beside if isinstance(about, dict) and about.get("weights") == path.name else None


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of an export's JSON file.

    Raises: `UserError` naming the file, where it is no such description or of a later schema.
    """
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint: {path} is not readable JSON ({error})") from error
    if not isinstance(about, dict) or not isinstance(about.get("weights"), str):
        raise UserError(f"checkpoint: {path} describes no exported network")
    if about.get("schema") != SCHEMA:
        raise UserError(
            f"checkpoint: {path} has schema {about.get('schema')!r}; this version reads {SCHEMA}"
        )
    # The file names its neighbour; a path would have it name any file.
    if Path(about["weights"]).name != about["weights"]:
        raise UserError(
            f"checkpoint: {path} names weights {about['weights']!r}; a file beside it is wanted"
        )
    return about


def load_export(path: Path) -> nn.Module:
    """Return the network that an export's JSON file describes, with its weights, in eval mode, on
    the CPU.

    Raises: `UserError` where the description or the weights are missing, damaged or do not belong
    together.
    """
    about = read_description(path)
    settings = about.get("settings", {})
    if not isinstance(settings, Mapping):
        raise UserError(f"checkpoint: {path}: its settings are no mapping")
    known = {field: about[field] for field in _FIELDS if field in about}
    net = rebuild({"name": about.get("architecture"), "settings": {**settings, **known}})
    weights = path.with_name(about["weights"])
    return load_weights(net, read_checkpoint(weights), source=weights).eval()


def _serialised(format: str, state: dict[str, Tensor]) -> bytes:  # noqa: A002
    if format == "pt":
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()
    if format != "safetensors":
        raise UserError(f"format: {format!r}; accepted: pt, safetensors")
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(
            "format: safetensors needs the package safetensors; pip install 'robust-ood[safetensors]'"
        ) from error
    return bytes(save(state))
