"""Checks of an evaluation that are made before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_ood.cli.bounds import check_name
from robust_ood.errors import UserError
from robust_ood.evaluation import Accuracy, Results, Row
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.reporting.papers.checkpoints import find_claim


def check_names(config: Any) -> None:
    """Refuse names of networks, detectors, attacks and claims that are none."""
    if config.published is not None:
        find_claim(config.published)
    if config.name is not None:
        check_name("name", config.name)
    for name in config.models or {}:
        check_name("models", name)
    for field in ("detectors", "attacks"):
        for part in config[field]:
            if isinstance(part, Mapping) and part.get("label") is not None:
                check_name(f"{field}.label", str(part["label"]))


def choose_device(name: str) -> torch.device:
    """Return the named device; "auto" is the GPU if there is one, under torchrun one a process."""
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank = int(os.environ.get("LOCAL_RANK", 0))  # a number: `check_processes`
        return torch.device("cuda", rank % torch.cuda.device_count())
    accepted = "accepted: auto, cpu, cuda or cuda:N"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps|xpu(:\d{1,3})?", name):
        raise UserError(f"device: {name!r} is not known; {accepted}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {name!r} is not usable here ({reason}); {accepted}") from error
    return device


def check_output(folder: Path, models: Mapping[str, nn.Module], inliers: str) -> None:
    """Refuse a folder whose results are of another evaluation, and would be replaced by these.

    Results of the same in-distribution set, and of at least one of the same networks under its old
    name, are the same evaluation: what changed in it is computed, and the rest is in the store.

    Raises: `UserError` also for results that cannot be read or are of another schema.
    """
    if not (folder / "results.json").exists():
        return
    results = Results.read(folder)
    records: list[Row | Accuracy] = [*results.rows, *results.classification]
    old_models: list[str] = []
    old_sets: list[str] = []
    for record in records:
        if record.model not in old_models:
            old_models.append(record.model)
        if record.id not in old_sets:
            old_sets.append(record.id)
    hint = "take another folder, or replace them with --replace true"
    if old_models and not set(old_models) & set(models):
        raise UserError(
            f"output: {folder} holds results of {', '.join(old_models)}, "
            f"these are of {', '.join(models)}; {hint}"
        )
    for name, weights in results.environment.get("networks", {}).items():
        if name in models and fingerprint(dict(models[name].state_dict())) != weights:
            raise UserError(
                f"output: {folder} holds results of another network named {name}; {hint}, "
                "or give a --name"
            )
    if old_sets and inliers not in old_sets:
        raise UserError(
            f"output: {folder} holds results on {', '.join(old_sets)}, "
            f"these are on {inliers}; {hint}"
        )
