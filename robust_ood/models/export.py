"""A network on its own: plain weights, and a manifest that says what network they belong to."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.checkpoints import load_weights, read_checkpoint
from robust_ood.models.description import describe, rebuild
from robust_ood.models.zoo import located
from robust_ood.writing import in_place_of, replace_file

MANIFEST = "network.json"
SCHEMA = 1
Format = Literal["pt", "safetensors"]
_FIELDS = ("num_classes", "mean", "std")
"""Settings of most networks of ours, which the manifest holds at its top level."""


@typed
def export(
    net: nn.Module,
    folder: Path | str,
    format: Format = "pt",  # noqa: A002  # the name that users know
    training: Mapping[str, Any] | None = None,
    class_names: tuple[str, ...] = (),
) -> Path:
    """Write a network of ours as plain weights with `network.json`, and return the folder.

    The weights, `weights.pt` or `weights.safetensors`, are a state dict on the CPU, contiguous,
    without any prefix; normalisation is among its buffers. Each file is written whole or not at
    all, the JSON file last.

    Args:
        net: one of the networks that a checkpoint can describe.
        folder: created where it does not exist.
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
            f"net: {type(net).__name__} is not one of this project's networks, which alone an "
            "export can describe; save its state_dict() and name its class with --net"
        )
    settings = dict(description["settings"])
    manifest = {
        "schema": SCHEMA,
        "architecture": description["name"],
        **{field: settings.pop(field) for field in _FIELDS if field in settings},
        "settings": settings,
        "class_names": list(class_names),
        "training": dict(training or {}),
        "weights": f"weights.{format}",
    }
    state = {}
    for key, value in net.state_dict().items():
        state[key] = value.detach().cpu().contiguous()
    # Serialised in memory first: on a full disk, each library raises an error of its own.
    content = _serialised(format, state)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with in_place_of(folder / MANIFEST) as partial:
            partial.write_text(json.dumps(manifest, indent=2) + "\n")
            replace_file(folder / str(manifest["weights"]), content)
    except OSError as error:
        raise UserError(
            f"output: cannot write into {folder} ({error.strerror or error})"
        ) from error
    return folder


def find_manifest(path: Path) -> Path | None:
    """Return the `network.json` of an export: the path itself, one in it, or one beside it.

    A file beside `path` counts only where it names `path` as its weights. `zoo:NAME` is an export
    that comes with the package.
    """
    path = located(path)
    if path.name == MANIFEST and path.is_file():
        return path
    if path.is_dir():
        inside = path / MANIFEST
        if inside.is_file():
            return inside
        return None
    beside = path.with_name(MANIFEST)
    try:
        manifest = json.loads(beside.read_text())
    except (OSError, ValueError):  # none, or somebody else's file of that name
        return None
    if isinstance(manifest, dict) and manifest.get("weights") == path.name:
        return beside
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the content of an export's `network.json`.

    Raises: `UserError` naming the file, where it is no manifest or one of a later schema.
    """
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint: {path} is not readable JSON ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("weights"), str):
        raise UserError(f"checkpoint: {path} describes no exported network")
    if manifest.get("schema") != SCHEMA:
        raise UserError(
            f"checkpoint: {path} has schema {manifest.get('schema')!r}; this version reads {SCHEMA}"
        )
    # A path would let the manifest name any file of the machine.
    weights = manifest["weights"]
    if Path(weights).name != weights:
        raise UserError(f"checkpoint: {path}: expected weights beside it, got the path {weights!r}")
    return manifest


def load_export(path: Path) -> nn.Module:
    """Return the network of an export's `network.json` with its weights, in eval mode, on the CPU.

    Raises: `UserError` where the manifest or the weights are missing, damaged or do not belong
        together.
    """
    manifest = read_manifest(path)
    settings = manifest.get("settings", {})
    if not isinstance(settings, Mapping):
        raise UserError(f"checkpoint: {path}: expected a mapping of settings, got {settings!r}")
    fields = {field: manifest[field] for field in _FIELDS if field in manifest}
    net = rebuild({"name": manifest.get("architecture"), "settings": {**settings, **fields}})
    weights = path.with_name(manifest["weights"])
    return load_weights(net, read_checkpoint(weights), source=weights).eval()


def _serialised(format: str, state: dict[str, Tensor]) -> bytes:  # noqa: A002
    if format == "pt":
        file = io.BytesIO()
        torch.save(state, file)
        return file.getvalue()
    if format != "safetensors":
        raise UserError(f"format: expected pt or safetensors, got {format!r}")
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(
            "format: safetensors needs the package safetensors; "
            "pip install 'robust-ood[safetensors]'"
        ) from error
    return bytes(save(state))
