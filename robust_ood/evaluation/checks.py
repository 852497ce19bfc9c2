"""Checks of what the user asked for, made before any work."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from robust_ood.attacks import Attack, Budget
from robust_ood.errors import UserError
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.results import Results


def check_count(field: str, number: int | None) -> None:
    """Raise `UserError` unless a number of images is absent or at least one."""
    if number is not None and number < 1:
        raise UserError(f"{field}: {number} is not a number of images >= 1")


def check_attacks(attacks: Mapping[str, Attack], field: str = "attacks") -> None:
    """Raise `UserError`, naming the field, for attacks, by label, that no row could speak of."""
    if "none" in attacks:
        raise UserError(
            f"{field}: 'none' is the label of clean images; give the attack another 'label'"
        )
    for label, attack in attacks.items():
        if not math.isfinite(attack.settings()["radius"]):
            raise UserError(
                f"{field}.{label}: no radius; accepted: attacks within an Linf or L2 radius"
            )
        if isinstance(attack, Budget):
            attack.warn_if_short(f"{field}.{label}")


def choose_device(name: str) -> torch.device:
    """Return the named device; "auto" is the GPU where there is one, under torchrun each process's
    own.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
        )
    wanted = "auto, cpu, cuda or cuda:N is accepted"
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps|xpu(:\d+)?", name):
        raise UserError(f"device: {name!r} is not known; {wanted}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device: {name!r} is not usable here ({str(error).splitlines()[0]}); {wanted}"
        ) from error
    return device


def check_output(folder: Path, models: Mapping[str, nn.Module], inliers: str) -> None:
    """Refuse a folder whose results are of another evaluation, and would be replaced by these.

    Results of the same in-distribution set, and of at least one of the same networks under its old
    name, are the same
    evaluation: what changed in it is computed, and the rest is found in the store.

    Raises: `UserError` also for results that cannot be read or are of another schema.
    """
    if not (folder / "results.json").exists():
        return
    there = Results.read(folder)
    subjects = [(row.model, row.id) for row in there.rows] + [
        (row.model, row.id) for row in there.classification
    ]
    old, sets = (
        (list(dict.fromkeys(names)) for names in zip(*subjects, strict=True))
        if subjects
        else ([], [])
    )
    hint = "take another folder, or replace them with --replace true"
    if old and not set(old) & set(models):
        raise UserError(
            f"output: {folder} holds results of {', '.join(old)}, these are of {', '.join(models)}; {hint}"
        )
    for name, mark in there.environment.get("networks", {}).items():
        if name in models and fingerprint(dict(models[name].state_dict())) != mark:
            raise UserError(
                f"output: {folder} holds results of another network named {name}; {hint}, or give a --name"
            )
    if sets and inliers not in sets:
        raise UserError(
            f"output: {folder} holds results on {', '.join(sets)}, these are on {inliers}; {hint}"
        )
