"""Sums over the processes of a distributed run; without one, values stay as they are."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

_OPERATIONS = (
    {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
    if dist.is_available()
    else {}
)


def several() -> bool:
    """Return whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(tensor: Tensor, how: Literal["sum", "min", "max"] = "sum") -> Tensor:
    """Return the element-wise sum (or minimum, maximum) of every process's tensor, the same in all
    of them.
    """
    if not several():
        return tensor
    moved = tensor.to(_device()).contiguous()
    dist.all_reduce(moved, op=_OPERATIONS[how])
    return moved.to(tensor.device)


def gathered(tensor: Tensor) -> Tensor:
    """Return the rows of every process's tensor, one process after the other; their numbers may
    differ.
    """
    if not several():
        return tensor
    device, world = _device(), dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(tensor)], device=device))
    longest = max(int(count) for count in counts)
    padded = tensor.new_zeros((longest, *tensor.shape[1:])).to(device)
    padded[: len(tensor)] = tensor.to(device)
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)]).to(
        tensor.device
    )


def _device() -> torch.device:
    """Return where the backend wants its tensors."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if dist.get_backend() == "nccl"
        else torch.device("cpu")
    )
