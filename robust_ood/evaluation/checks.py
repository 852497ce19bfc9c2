"""Checks of what the user asked for, made before any work."""

from __future__ import annotations

import re

import torch

from robust_ood.errors import UserError


def check_limit(limit: int | None) -> None:
    """Raise `UserError` unless the limit is absent or at least one image."""
    if limit is not None and limit < 1:
        raise UserError(f"limit: {limit} is not a number of images >= 1")


def choose_device(name: str) -> torch.device:
    """Return the named device; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = "auto, cpu, cuda or cuda:N is accepted"
    if not re.fullmatch(r"cpu|cuda(:\d+)?|mps|xpu(:\d+)?", name):
        raise UserError(f"device: {name!r} is not known; {wanted}")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name!r} is not usable here ({str(error).splitlines()[0]}); {wanted}") from error
    return device
