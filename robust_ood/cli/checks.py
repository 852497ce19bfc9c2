"""Checks of what fits together, made before any work and before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import count_classes, load_weights

_RESUMABLE = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step"}


def check_classes(net: nn.Module, data: OODData, part: Literal["train", "validation", "test"]) -> None:
    """Refuse a network that cannot take the data's images or has another number of classes."""
    classes = count_classes(net, data.inliers(part).image_shape)
    if classes != data.num_classes:
        raise UserError(f"net: gives {classes} logits, but data.num_classes is {data.num_classes}")


def check_resumable(content: Mapping[str, Any], path: str, net: nn.Module) -> None:
    """Refuse a file that training cannot continue from: weights alone, or those of another network."""
    missing = sorted(_RESUMABLE - content.keys())
    if missing:
        raise UserError(f"ckpt_path: {path} is no checkpoint of a training run: it lacks {', '.join(missing)}")
    load_weights(net, content, source=path)
