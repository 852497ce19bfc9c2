"""A guard's folder: plain tensors, a description, and a page for people. Nothing is unpickled.

guard.json               the description, the files' SHA-256 sums, and the guard's id
README.md                a model card in the form of the Hugging Face Hub
network/                 weights.safetensors and network.json, as `models.export` writes them
detector.safetensors     what the detector learned, and the calibration scores
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_ood import detectors
from robust_ood.arguments import typed
from robust_ood.deployment.card import model_card
from robust_ood.deployment.description import read_description
from robust_ood.deployment.guard import Guard
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.models import export, load_network
from robust_ood.settings import read_part
from robust_ood.texts import first_sentence
from robust_ood.writing import replace_file

DESCRIPTION = "guard.json"
CARD = "README.md"
_TENSORS = "detector.safetensors"
_NETWORK = "network"
_FILES = (f"{_NETWORK}/network.json", f"{_NETWORK}/weights.safetensors", _TENSORS)
_CALIBRATION = "calibration.scores"
_LARGEST_DESCRIPTION = 2**26
"""Bytes of a `guard.json` that are read; more is no file of ours."""


@typed
def write_guard(guard: Guard, folder: Path | str) -> Path:
    """Write a guard's folder and return it; `guard.json`, without which it is none, comes last.

    Args:
        guard: of one of this project's networks and a registered detector.
        folder: made where it does not exist.

    Raises: `UserError` for a network of somebody else's code, or a folder that cannot be written.
    """
    require_safetensors()
    from safetensors.torch import save

    folder = Path(folder)
    description = guard.description
    tensors = learned_state(guard.detector)
    tensors[_CALIBRATION] = guard.calibration.detach().cpu().contiguous()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A folder that is being replaced is no guard until all of it is there.
        (folder / DESCRIPTION).unlink(missing_ok=True)
        export(
            guard.net,
            folder / _NETWORK,
            "safetensors",
            description.training,
            description.class_names,
        )
        replace_file(folder / _TENSORS, bytes(save(tensors)))
        sums = {name: _sum(folder / name) for name in _FILES}
        content = _with_id(description.as_dict(), sums)
        guard.description = replace(description, id=content["id"])
        replace_file(folder / CARD, model_card(guard.description))
        replace_file(folder / DESCRIPTION, json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"output: cannot write into {folder} ({reason})") from error
    return folder


@typed
def load_guard(folder: Path | str) -> Guard:
    """Return the guard of a folder, on the CPU.

    Args:
        folder: as `robust-ood calibrate` wrote it, or its `guard.json`.

    Raises: `UserError` where something is missing, damaged, changed since it was written, or of a
        later version.
    """
    require_safetensors()
    path = Path(folder)
    if path.name == DESCRIPTION and path.is_file():
        path = path.parent
    content = _read_json(path)
    description = read_description(content, str(path / DESCRIPTION))
    _check_sums(path, content)
    net = load_network(path / _NETWORK)
    tensors = _read_tensors(path / _TENSORS)
    calibration = tensors.pop(_CALIBRATION, None)
    if calibration is None:
        raise UserError(f"guard: {path / _TENSORS} is damaged: it lacks the calibration scores")
    part = read_part("detectors", dict(description.detector))
    detector = detectors.build(part.name, net, **part.settings)
    state = detector.state_dict()
    if not set(tensors) <= set(state):
        raise UserError(f"guard: {path / _TENSORS} holds the state of another detector")
    detector.load_state_dict({**state, **tensors})
    if not detector.fitted:
        raise UserError(f"guard: {path / _TENSORS} is damaged: the detector's state is incomplete")
    return Guard(net, detector, description, calibration)


def learned_state(detector: Detector) -> dict[str, Tensor]:
    """Return what a detector and those inside it have learned, by name, tensors of any shape."""
    state = detector.state_dict()
    learned = {}
    for prefix, module in detector.named_modules():
        if isinstance(module, Detector):
            for name in module.declared:
                key = f"{prefix}.{name}".lstrip(".")
                learned[key] = state[key].detach().cpu().clone().contiguous()
    return learned


def require_safetensors() -> None:
    """Raise `UserError` where the package is missing."""
    try:
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        raise UserError(
            "guard: needs the package safetensors; pip install 'robust-ood[safetensors]'"
        ) from error


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _with_id(content: Mapping[str, Any], sums: Mapping[str, str]) -> dict[str, Any]:
    """Return the content of `guard.json` with the files' sums, and an id of all of it."""
    # As a reader will see it: tuples are lists in JSON.
    plain: dict[str, Any] = json.loads(json.dumps({**content, "files": dict(sums), "id": ""}))
    text = json.dumps(plain, sort_keys=True, allow_nan=False)
    plain["id"] = hashlib.sha256(text.encode()).hexdigest()
    return plain


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    hint = "robust-ood calibrate writes such a folder"
    if not path.is_file():
        raise UserError(f"guard: {folder} holds no {DESCRIPTION}; {hint}")
    try:
        if path.stat().st_size > _LARGEST_DESCRIPTION:
            raise ValueError("too large")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = first_sentence(error, 80)
        raise UserError(f"guard: {path} is unreadable or damaged ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"guard: {path} is damaged: expected a mapping")
    return content


def _check_sums(folder: Path, content: Mapping[str, Any]) -> None:
    """Refuse a folder in which anything differs from what was written."""
    sums = content.get("files")
    if not isinstance(sums, Mapping) or set(sums) != set(_FILES):
        raise UserError(f"guard: {folder / DESCRIPTION} is damaged: it does not list its files")
    for name in _FILES:
        path = folder / name
        if not path.is_file():
            raise UserError(f"guard: {path} is missing")
        if _sum(path) != sums[name]:
            raise UserError(f"guard: {path} has changed since the guard was written (SHA-256)")
    if _with_id(content, sums)["id"] != content.get("id"):
        raise UserError(
            f"guard: {folder / DESCRIPTION} has changed since it was written; calibrate again"
        )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"guard: {path} is damaged ({first_sentence(error, 80)})") from error
    return {name: torch.clone(tensor) for name, tensor in tensors.items()}
