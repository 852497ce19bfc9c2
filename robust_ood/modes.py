"""Context managers that change how modules and tensors behave, and restore it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed


@contextmanager
def mode(*modules: nn.Module, training: bool) -> Iterator[None]:
    """Set every submodule to train or eval mode inside the block, then restore each one's flag.

    Lightning, frozen BatchNorm layers and dropout all rely on flags that differ between submodules,
    so restoring the root's flag alone would silently change the network.
    """
    flags = {}
    for module in modules:
        for submodule in module.modules():
            flags[submodule] = submodule.training
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for submodule, flag in flags.items():
            submodule.training = flag


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set every submodule to eval mode inside the block, then restore each one's flag."""
    with mode(*modules, training=False):
        yield


@contextmanager
def differentiating() -> Iterator[None]:
    """Allow gradients inside the block, even within `no_grad` or Lightning's `inference_mode`."""
    if torch.is_inference_mode_enabled():
        # Autocast caches the weights that it casts; older PyTorch caches inference tensors, too.
        torch.clear_autocast_cache()
    with torch.inference_mode(False), torch.enable_grad():
        yield


@typed
def ordinary(tensor: Tensor) -> Tensor:
    """Return the tensor, of any shape, detached, and copied if made under `inference_mode`.

    Autograd does not accept inference tensors. The copy is made outside that mode: inside, it would
    be an inference tensor again.
    """
    with torch.inference_mode(False):
        return tensor.detach().clone() if tensor.is_inference() else tensor.detach()
