"""Adversarial perturbation of weights: AWP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.losses import wide


class WeightPerturbation:
    """Moves a network's weights to where the loss is larger, and back to the very same bits.

    Each weight w of two dimensions or more moves by `v = gamma ||w|| g / ||g||`, g the gradient of
    the loss; biases and the scales of normalisation layers stay. Source: Wu et al. 2020,
    "Adversarial weight perturbation helps robust generalization", Eq. 8 to 10, with one step, as
    there. Its code takes the optimiser's step at `w + v` and then subtracts v, which rounds and
    lets weight decay see v; here the optimiser steps at w, with the gradient of `w + v`.

    Args:
        net: whose weights are moved.
        size: gamma, >= 0; 5e-3 in the paper. 0 moves nothing.

    Raises:
        UserError: a size below 0, or not finite.
    """

    def __init__(self, net: nn.Module, size: float) -> None:
        if not 0 <= size < float("inf"):
            raise UserError(f"weight_perturbation: {size} is not a finite number >= 0")
        self.net = net
        self.size = size
        self._originals: list[tuple[nn.Parameter, Tensor]] = []
        self._found: dict[str, Tensor] | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def raised(self, objective: Callable[[], Tensor], mean: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the objective at the perturbed weights, which stay so until `restore`.

        The objective is evaluated twice. What it takes by `once`, such as attacked images, is found
        at the first time. Running statistics move as in one evaluation.

        Args:
            objective: gives the scalar to descend; its draws are the same at both times.
            mean: the mean of a tensor over all processes.
        """
        self.restore()
        self._found = {}
        try:
            self._keep_buffers()
            loss = objective()
            self._perturb(loss, mean)
            with torch.no_grad():
                for buffer, kept in self._buffers:
                    buffer.copy_(kept)
            self._buffers = []
            return objective()
        finally:
            self._found = None

    def once(self, purpose: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` gives, or gave for this purpose at the weights not perturbed."""
        if self._found is None:
            return compute()
        if purpose not in self._found:
            self._found[purpose] = compute()
            self._keep_buffers()  # what an attack in train mode moves is moved but once
        return self._found[purpose]

    def restore(self) -> None:
        """Give the weights back the values that they had; nothing to do where they have them."""
        with torch.no_grad():
            for weight, original in self._originals:
                weight.copy_(original)
        self._originals = []

    def _keep_buffers(self) -> None:
        self._buffers = [(buffer, buffer.clone()) for buffer in self.net.buffers()]

    def _perturb(self, loss: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        kind = loss.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        weights = []
        for weight in self.net.parameters():
            if weight.requires_grad and weight.ndim >= 2:
                weights.append(weight)
        # The direction does not depend on the scale, which keeps float16 from underflow.
        scaled = loss * 2.0**10 if half else loss
        gradients = torch.autograd.grad(scaled, weights, allow_unused=True)
        pieces = []
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is None:  # of a layer that the loss does not read
                gradient = torch.zeros_like(weight)
            pieces.append(gradient.flatten())
        together = mean(torch.cat(pieces)).nan_to_num(0.0, 0.0, 0.0)
        # Weights that autocast has cast would be reused at the perturbed ones.
        torch.clear_autocast_cache()
        with torch.no_grad():
            for weight, piece in zip(weights, _split(together, weights), strict=True):
                self._originals.append((weight, weight.clone()))
                weight.add_(_offset(weight, piece, self.size))


def _offset(weight: Tensor, gradient: Tensor, size: float) -> Tensor:
    """Return `size ||w|| g / ||g||`, zero where the gradient is."""
    length = wide(gradient).norm()
    share = size * wide(weight).norm() / length.clamp_min(torch.finfo(length.dtype).tiny)
    offset: Tensor = (share * gradient).to(weight.dtype)
    return offset


def _split(together: Tensor, like: list[nn.Parameter]) -> list[Tensor]:
    """Return the pieces of a vector in the shapes of weights."""
    pieces = []
    first = 0
    for weight in like:
        pieces.append(together[first : first + weight.numel()].view(weight.shape))
        first += weight.numel()
    return pieces
