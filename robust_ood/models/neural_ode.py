"""A classifier whose features flow along a learned vector field before the last layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.heads import find_head
from robust_ood.models.outputs import outputs


class _Flow(nn.Module):
    """A projection, a vector field followed for a time, and a linear head."""

    def __init__(self, inputs: int, width: int, num_classes: int) -> None:
        super().__init__()
        # (inputs, width), as the published files hold it: columns are orthonormal there.
        self.projection = nn.Parameter(torch.empty(inputs, width))
        nn.init.orthogonal_(self.projection)
        self.field = nn.Linear(width, width)
        self.head = nn.Linear(width, num_classes)

    def velocity(self, state: Tensor) -> Tensor:
        """Return the vector field `(N, width)` at states `(N, width)`."""
        return torch.sin(-self.field(state))

    def arrive(self, features: Tensor, time: float, steps: int) -> Tensor:
        """Return where projected features `(N, D)` are after a time, `(N, width)`."""
        state = features @ self.projection  # (N, width)
        step = time / steps
        for _ in range(steps):
            first = self.velocity(state)
            second = self.velocity(state + step / 2 * first)
            third = self.velocity(state + step / 2 * second)
            fourth = self.velocity(state + step * third)
            state = state + step / 6 * (first + 2 * second + 2 * third + fourth)
        return state


class NeuralODENet(nn.Module):
    """A network's features, moved along a vector field, to logits `(N, num_classes)`.

    Images `(N, C, H, W)` in [0, 1]. The features are projected to `width` numbers, follow `dy/dt =
    sin(-(W y + b))` from time 0 to `time`, and end in a linear layer. The path is computed by
    Runge-Kutta steps of one size, through which gradients are exact: the adjoint solver of the
    published code, with a tolerance of 1e-3, gives attackers other gradients than the score has.

    Source: AROS (Mirzaei and Mathis 2025), as its public code runs.

    Args:
        net: the network whose features are read, with a linear head that is not used.
        width: of the state; 128 in the public code.
        num_classes: K.
        time: how long the state moves, > 0; 5 in the public code.
        steps: of fourth order, >= 1.
    """

    separate_part = "flow"
    """What a file of weights may hold alone, where `net` has its own."""

    @typed
    def __init__(
        self,
        net: nn.Module,
        width: int = 128,
        num_classes: int = 10,
        time: float = 5.0,
        steps: int = 20,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("num_classes", num_classes), ("steps", steps)):
            if value < 1:
                raise UserError(f"{name}: expected a number >= 1, got {value}")
        if not (time > 0 and math.isfinite(time)):
            raise UserError(f"time: expected a number > 0, got {time}")
        self.net = net
        self.time = time
        self.steps = steps
        self.flow = _Flow(find_head(net).in_features, width, num_classes)
        layers = getattr(net, "feature_layers", ())
        self.feature_layers = tuple(f"net.{name}" for name in layers)

    @property
    def settings(self) -> dict[str, Any]:
        """What builds this network again."""
        return {
            "net": self.net,
            "width": self.flow.projection.shape[1],
            "num_classes": self.flow.head.out_features,
            "time": self.time,
            "steps": self.steps,
        }

    @property
    def head(self) -> nn.Linear:
        """The last linear layer, which reads the moved features."""
        return self.flow.head

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K)`."""
        features = outputs(self.net, images).features
        logits: Tensor = self.flow.head(self.flow.arrive(features, self.time, self.steps))
        return logits
