"""Whether an in-loop attack raises the loss, and whether it has gradients at all."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from robust_ood.regions import Region
from robust_ood.rules import Rule, Steepest, Stepper


class Finding(NamedTuple):
    """What one in-loop attack did to one batch.

    succeeded: share of images whose value it made smaller than at its start. zeros: share of the
    entries of all input gradients that were exactly zero.
    """

    succeeded: float
    zeros: float


class Watch(Rule):
    """A step rule that steps as another one does and counts zeros in the gradients it is given."""

    def __init__(self, rule: Rule | None) -> None:
        self.rule = rule or Steepest()
        self.zeros: list[Tensor] = []

    def begin(
        self, region: Region, center: Tensor, steps: int, step_size: float | Tensor
    ) -> Stepper:
        """Return the watched rule's stepper."""
        advance = self.rule.begin(region, center, steps, step_size)

        def step(images: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
            self.zeros.append((gradient == 0).float().mean())
            return advance(images, gradient, values)

        return step

    def finding(self, before: Tensor, after: Tensor) -> Finding:
        """Return what happened, given the values `(N,)` at the start and at the end."""
        succeeded = (after < before).float().mean().item()
        return Finding(succeeded, torch.stack(self.zeros).mean().item())
