"""The precision in which attacks differentiate: the fastest that keeps their strength.

Only the search for candidates runs in it. Which candidate is worst is decided by the true score, in
float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_ood.detectors import Detector, surface_of
from robust_ood.perturb import JudgedObjective, Objective

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 numbers natively, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    read_capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in older torch
    if device.type != "cpu" or read_capabilities is None:
        return False
    capabilities = dict(read_capabilities())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve(setting: Precision, images: Tensor, target: nn.Module) -> str:
    """Return the precision of an attack's gradients: "float32", "bfloat16", or the surrounding one.

    Args:
        setting: "auto" is bfloat16 where the device has it, unless the target holds a detector that
            `needs_float32`.
        images: what is attacked; float64 images belong to float64 networks, which keep their
            precision.
        target: the detector or network that is differentiated.
    """
    kind = images.device.type
    if torch.is_autocast_enabled(kind):
        return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    if images.dtype != torch.float32:
        return str(images.dtype).removeprefix("torch.")
    if setting != "auto":
        return setting
    if not has_bfloat16(images.device):
        return "float32"
    for module in target.modules():
        if isinstance(module, Detector) and surface_of(module).needs_float32:
            return "float32"
    return "bfloat16"


def rounds(precision: str) -> bool:
    """Return whether values in this precision are too coarse to compare two near iterates."""
    return precision in ("bfloat16", "float16")


def computed_in(
    precision: str, objective: Objective | JudgedObjective
) -> Objective | JudgedObjective:
    """Return the objective, under autocast to bfloat16 where that is the precision."""
    if precision != "bfloat16":
        return objective

    def rounded(images: Tensor) -> Any:
        with torch.autocast(images.device.type, torch.bfloat16):
            return objective(images)

    return rounded
