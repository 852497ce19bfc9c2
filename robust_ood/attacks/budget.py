"""The budget of a search by gradient steps: what training and evaluations have in common."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.perturb import JudgedObjective, Minimum, Objective, minimize
from robust_ood.regions import Fraction, Generators, Linf, Region
from robust_ood.rules import Rule, Steepest

Steps = int | Literal["aloe"]
"""A number of steps, or the ALOE paper's rule for it."""


@dataclass(frozen=True, init=False)
class Budget:
    """Where a search by projected gradient descent may go, and how hard it tries.

    The part of an attack that training and evaluations share; `PGD` adds what only an evaluation
    uses. Images are `(N, C, H, W)` in [0, 1].

    Source: Madry et al. 2018; the momentum is that of MI-FGSM, Dong et al. 2018, Eq. 6.

    Args:
        region: where the perturbed image may be, such as `Linf(8/255)`.
        steps: gradient steps, >= 1; "aloe" takes the ALOE paper's floor(255 radius + 1).
        step_size: size of a step in the region's norm, a number or a fraction such as `2/255`.
        random_start: begin at a random point of the region instead of at the clean image.
        rule: how a gradient becomes a step. With neither rule nor step size, steps have momentum
            0.9 and shrink from the radius to zero along half a cosine, so that more of them settle
            deeper. A step size alone gives constant steps, as published; a rule alone takes `2.5
            radius / steps`.

    Raises:
        UserError: no steps, a negative step size, or none for a region without a radius.
    """

    # What is read. jsonargparse takes these for the arguments' types, too, hence the fraction.
    region: Region
    steps: int
    step_size: float | Fraction
    random_start: bool
    rule: Rule | None

    @typed
    def __init__(
        self,
        region: Region,
        steps: Steps = 10,
        step_size: float | Fraction | None = None,
        random_start: bool = True,
        rule: Rule | None = None,
    ) -> None:
        count = _aloe_steps(region) if steps == "aloe" else steps
        check_count("steps", count)
        if step_size is None and rule is None and region.radius < math.inf:
            # Where a score is rough, as the distance to the k-th neighbour is, constant steps keep
            # jumping over what shrinking ones settle in.
            step_size = region.radius
            rule = Steepest(momentum=0.9, decay="cosine")
        self._set(
            region=region,
            steps=count,
            step_size=_step_size(region, count, step_size),
            random_start=random_start,
            rule=rule,
        )

    def _set(self, **values: Any) -> None:
        """Set fields of a frozen instance while it is made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def at(self, progress: float) -> Budget:
        """Return the budget at a share of a training run, in [0, 1]: always this one."""
        return self

    @property
    def searched(self) -> Region:
        """Where the search may go: the region."""
        return self.region

    def start(self, images: Tensor, generators: Generators) -> Tensor | None:
        """Return where a search around images `(N, C, H, W)` begins; None for the images."""
        if not self.random_start:
            return None
        return self.region.sample(images, generators)

    def descend(
        self,
        objective: Objective | JudgedObjective,
        images: Tensor,
        start: Tensor | None,
        *,
        keep: Literal["best", "last"],
        judge: Objective | None = None,
        rule: Rule | None = None,
    ) -> Minimum:
        """Return the outcome of one search.

        Args:
            objective, images, start, keep, judge: as in `robust_ood.minimize`.
            rule: a rule in place of the budget's own, for instance one that also takes notes.
        """
        return minimize(
            objective,
            images,
            self.searched,
            steps=self.steps,
            step_size=self.step_size,
            rule=rule or self.rule,
            start=start,
            keep=keep,
            judge=judge,
        )

    def warn_if_short(self, field: str) -> None:
        """Warn where all steps together are shorter than the radius, naming the config field."""
        reach = self.steps * self.step_size
        radius = self.region.radius
        # A relative margin: 8 steps of 1/255 reach 8/255, whatever the last digit says.
        if radius == math.inf or reach >= radius * (1 - 1e-6):
            return
        warnings.warn(
            f"{field}: steps x step_size is {self.steps} x {self.step_size:.4g} = {reach:.4g}, "
            f"less than the radius {radius:.4g}; give more steps or a larger step_size (null: 2.5 "
            "radius / steps)",
            stacklevel=3,
        )


def check_count(field: str, count: object) -> None:
    """Raise `UserError`, naming the field, unless a count is a whole number >= 1."""
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{field}: {count} is not a whole number >= 1")


def _aloe_steps(region: Region) -> int:
    if not isinstance(region, Linf):
        raise UserError(
            "steps: 'aloe' counts the grey levels of an Linf radius; expected a whole number "
            f">= 1 for a region {region.name}"
        )
    # Not one level less where the product is rounded down to just below a whole number.
    return math.floor(255 * region.radius + 1 + 1e-6)


def _step_size(region: Region, steps: int, step_size: float | Fraction | None) -> float:
    if step_size is not None:
        size = float(Fraction(step_size, "step_size"))
    elif region.radius < math.inf:
        size = 2.5 * region.radius / steps
    else:
        raise UserError(
            "step_size: an Unbounded region has no radius to derive it from; give a number"
        )
    if size < 0:
        raise UserError(f"step_size: {size} is negative")
    return size
