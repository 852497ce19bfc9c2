"""Step rules: how the engine turns a gradient into the next image.

A rule is settings; `begin` gives the stepper of one run, which may remember what it saw. A stepper gets the current
images, their gradient and their values, and returns the next images, already inside the region.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robust_ood.errors import UserError
from robust_ood.regions import Region

Stepper = Callable[[Tensor, Tensor, Tensor], Tensor]


class Rule(ABC):
    """How images move along a gradient; see `Steepest` for the usual one."""

    @abstractmethod
    def begin(self, region: Region, center: Tensor, steps: int, step_size: float | Tensor) -> Stepper:
        """Return the stepper of one run around the clean images `center` `(N, C, H, W)`."""


@dataclass(frozen=True)
class Steepest(Rule):
    """Constant steps in the region's steepest direction: sign steps for Linf, normalised gradients for L2.

    Args:
        momentum: decay of the accumulated gradient, 0 <= momentum < 1 (0: none). Each gradient is divided by its
            mean absolute value before it is added, as in MI-FGSM (Dong et al. 2018, Eq. 6).
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum: {self.momentum} is not in [0, 1)")

    def begin(self, region: Region, center: Tensor, steps: int, step_size: float | Tensor) -> Stepper:
        """Return the stepper; `step_size` may be a tensor that broadcasts over the images."""
        velocity = torch.zeros_like(center) if self.momentum else None

        def step(images: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
            if velocity is not None:
                mean = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
                gradient = velocity.mul_(self.momentum).add_(gradient / mean)
            return region.project(images - region.steepest(gradient) * step_size, center)

        return step


@dataclass(frozen=True)
class Optimizer(Rule):
    """Steps of a `torch.optim` class, whose learning rate is the step size; projected after each step.

    Args:
        kind: the optimiser class, for instance `torch.optim.Adamax` or `torch.optim.RMSprop`.
        options: its other arguments.
    """

    kind: type[torch.optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)

    def begin(self, region: Region, center: Tensor, steps: int, step_size: float | Tensor) -> Stepper:
        """Return the stepper; its moments are per pixel, so images do not influence one another."""
        variable = torch.empty_like(center).requires_grad_()
        optimizer = self.kind([variable], lr=step_size, **self.options)  # type: ignore[call-arg]

        def step(images: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
            with torch.no_grad():
                variable.copy_(images)
            variable.grad = gradient
            optimizer.step()
            return region.project(variable.detach(), center)

        return step
