"""Sums over the processes of a distributed run; without one, values stay as they are."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

_OPERATIONS = {}
if dist.is_available():
    _OPERATIONS["sum"] = dist.ReduceOp.SUM
    _OPERATIONS["min"] = dist.ReduceOp.MIN
    _OPERATIONS["max"] = dist.ReduceOp.MAX


def several() -> bool:
    """Return whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def total(tensor: Tensor, how: Literal["sum", "min", "max"] = "sum") -> Tensor:
    """Return the element-wise sum, minimum or maximum of all processes' tensors, in all of them.

    Args:
        tensor: of the same shape, any shape, in all processes.
        how: the operation.
    """
    if not several():
        return tensor
    # The backend may expect tensors on another device.
    reduced = tensor.to(_device()).contiguous()
    dist.all_reduce(reduced, op=_OPERATIONS[how])
    return reduced.to(tensor.device)


def gathered(tensor: Tensor) -> Tensor:
    """Return the rows of all processes' tensors, one process after the other.

    Args:
        tensor: `(N, ...)`; N may differ between processes.
    """
    if not several():
        return tensor
    device = _device()
    processes = dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(processes)]
    dist.all_gather(counts, torch.tensor([len(tensor)], device=device))
    # `all_gather` needs equal shapes: all tensors get as many rows as the longest.
    longest = max(int(count) for count in counts)
    padded = tensor.new_zeros((longest, *tensor.shape[1:])).to(device)
    padded[: len(tensor)] = tensor.to(device)
    gathered_rows = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(gathered_rows, padded)
    rows = []
    for process_rows, count in zip(gathered_rows, counts, strict=True):
        rows.append(process_rows[: int(count)])
    return torch.cat(rows).to(tensor.device)


def _device() -> torch.device:
    """Return the device that the backend expects tensors on."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
