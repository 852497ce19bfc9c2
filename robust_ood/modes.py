"""Context managers that change how modules and tensors behave, and put everything back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def mode(*modules: nn.Module, training: bool) -> Iterator[None]:
    """Set every submodule to train or eval mode inside the block, and restore each one's own flag
    after it.

    Lightning, frozen BatchNorm layers and dropout all rely on flags that differ between submodules,
    so restoring the root's flag alone would silently change the network.
    """
    flags = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Set every submodule to eval mode inside the block, and restore each one's own flag after
    it.
    """
    with mode(*modules, training=False):
        yield


@contextmanager
def differentiating() -> Iterator[None]:
    """Allow gradients inside the block, whatever surrounds it: `no_grad`, or Lightning's
    `inference_mode`.
    """
    if torch.is_inference_mode_enabled():
        # Autocast remembers the weights it has cast; older PyTorch remembers inference tensors,
        # too.
        torch.clear_autocast_cache()
    with torch.inference_mode(False), torch.enable_grad():
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """Return the tensor, of any shape, detached, as autograd accepts it: one made under
    `inference_mode` is copied.

    The copy is made outside that mode: inside, it would be an inference tensor again.
    """
    with torch.inference_mode(False):
        return tensor.detach().clone() if tensor.is_inference() else tensor.detach()
