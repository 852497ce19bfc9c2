"""Reading weights, without trusting the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_ood.errors import UserError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint file: tensors and plain values only; pickled code is refused, not run."""
    if not path.is_file():
        raise UserError(f"checkpoint: no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"checkpoint: {path} cannot be read ({str(error).splitlines()[0][:120]})") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint: {path} holds a {type(content).__name__}, not a state dict")
    return content


def load_network(path: Path, net: nn.Module | None = None) -> nn.Module:
    """Return the network of one of our checkpoints with its weights."""
    from robust_ood.models import WideResNet

    content = read_checkpoint(path)
    if net is None:
        net = WideResNet(**content["network"]["settings"])
    state = {k.removeprefix("net."): v for k, v in content["state_dict"].items() if k.startswith("net.")}
    net.load_state_dict(state)
    return net
