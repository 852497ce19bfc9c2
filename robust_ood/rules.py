"""Step rules: how the engine turns a gradient into the next image.

A rule is settings; `begin` gives the stepper of one run, which may remember what it saw. A stepper
gets the current images, their gradient and their values, and returns the next images, already
inside the region.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from robust_ood.arguments import check_fields
from robust_ood.errors import UserError
from robust_ood.randomness import Key, generator
from robust_ood.regions import L1, Region

Stepper = Callable[[Tensor, Tensor, Tensor], Tensor]

# Up to so many units in the last place of 1, a pixel's change is rounding: 1e-6 in float32.
_ROUNDING = 8.0


class Rule(ABC):
    """How images move along a gradient; see `Steepest` for the usual one."""

    @abstractmethod
    def begin(
        self, region: Region, center: Tensor, steps: int, step_size: float | Tensor
    ) -> Stepper:
        """Return the stepper of one run around the clean images `center` `(N, C, H, W)`."""


@dataclass(frozen=True)
class Steepest(Rule):
    """Steps in the region's steepest direction: signs for Linf, normalised gradients for L2.

    Args:
        momentum: decay of the accumulated gradient, 0 <= momentum < 1 (0: none). Each gradient is
            divided by its mean absolute value before it is added, as in MI-FGSM (Dong et al. 2018,
            Eq. 6).
        decay: "none" for steps of constant size; "cosine" for steps that shrink from the step size
            towards zero along half a cosine over the run. Where a score is rough, a search with
            constant steps keeps jumping over what one with shrinking steps settles in.
    """

    momentum: float = 0.0
    decay: Literal["none", "cosine"] = "none"

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum: {self.momentum} is not in [0, 1)")
        if self.decay not in ("none", "cosine"):
            raise UserError(f"decay: {self.decay!r} is neither 'none' nor 'cosine'")

    def begin(
        self, region: Region, center: Tensor, steps: int, step_size: float | Tensor
    ) -> Stepper:
        """Return the stepper; `step_size` may be a tensor that broadcasts over the images."""
        velocity = torch.zeros_like(center) if self.momentum else None
        sizes = iter(self._shares(steps))

        def step(images: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
            size = next(sizes) * step_size
            if velocity is not None:
                mean = gradient.abs().mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
                mean = mean.clamp_min(torch.finfo(gradient.dtype).tiny)
                gradient = velocity.mul_(self.momentum).add_(gradient / mean)
            return region.project(region.move(images, gradient, size), center)

        return step

    def _shares(self, steps: int) -> list[float]:
        """Return the share of the step size that each step takes."""
        if self.decay == "none":
            return [1.0] * steps
        return [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]


@dataclass(frozen=True)
class Optimizer(Rule):
    """Steps of a `torch.optim` class with the step size as learning rate, each projected.

    Args:
        kind: the optimiser class, for instance `torch.optim.Adamax` or `torch.optim.RMSprop`.
        options: its other arguments.
    """

    kind: type[torch.optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)

    def begin(
        self, region: Region, center: Tensor, steps: int, step_size: float | Tensor
    ) -> Stepper:
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


@dataclass(frozen=True)
class Langevin(Rule):
    """Steps along the gradient itself with noise: `x <- x - step_size grad + noise N(0, I)`.

    Each step is projected. Of an objective that is an energy E, small steps with `noise =
    sqrt(2 step_size)` sample the density `exp(-E)` (Welling and Teh 2011, Eq. 4); energy-based
    classifiers choose the two apart, with larger steps (JEM, Grathwohl et al. 2020, Eq. 3 and Sec.
    5).

    The noise is a pure function of `seed`, `keys` and the batch's shape: the same run twice gives
    the same samples, and a chain that goes on needs other keys.

    Args:
        noise: standard deviation of the noise of a step, in pixel fractions, >= 0.
        seed: of the noise.
        keys: what else the noise is keyed by, such as epoch, step and rank.
    """

    noise: float
    seed: int = 0
    keys: tuple[Key, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.noise < math.inf:
            raise UserError(f"noise: expected a finite number >= 0, got {self.noise}")

    def begin(
        self, region: Region, center: Tensor, steps: int, step_size: float | Tensor
    ) -> Stepper:
        """Return the stepper, whose draws begin anew with each run."""
        draws = generator(self.seed, "langevin", *self.keys, device=center.device)

        def step(images: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
            normal = torch.randn(
                images.shape, generator=draws, device=images.device, dtype=images.dtype
            )
            return region.project(images - step_size * gradient + self.noise * normal, center)

        return step


@dataclass(frozen=True)
class AutoPGD(Rule):
    """Steps with momentum whose size halves, image by image, where progress stops: Auto-PGD.

    Source: Croce and Hein 2020, Alg. 1 with the checkpoints and the comparison `<=` of the authors'
    code. The step size given to the engine is the first one; the paper's is twice the radius. One
    deviation from that code: in the first window, the first step is compared with the start's value
    (as in the paper) and not with zero.

    In L1 it is the rule of Croce and Hein 2021 (Alg. 1), which has no inertia and no share of
    progress: steps change a share of the pixels' values that follows how sparse the best image is.

    Args:
        inertia: share of each step that comes from the new gradient step, in (0, 1]; the rest
            repeats the last move.
        progress: share of the steps between checkpoints that must improve the value, or else the
            size is halved.
    """

    inertia: float = 0.75
    progress: float = 0.75

    def begin(
        self, region: Region, center: Tensor, steps: int, step_size: float | Tensor
    ) -> Stepper:
        """Return the stepper of one run; in L1, the one of sparse steps."""
        if isinstance(region, L1):
            return _SparseStepper(region, center, steps, step_size)
        return _AutoStepper(self, region, center, steps, step_size)


class _AutoStepper:
    """What Auto-PGD remembers of a run: the best image, the last one, how often the value fell."""

    def __init__(
        self, rule: AutoPGD, region: Region, center: Tensor, steps: int, size: float | Tensor
    ) -> None:
        self.rule = rule
        self.region = region
        self.center = center
        self.size = torch.zeros_like(center[:, :1, :1, :1]) + size  # (N, 1, 1, 1)
        # Windows between checkpoints: 22 % of the steps, then each 3 % shorter, 6 % at least.
        self.window = max(int(0.22 * steps), 1)
        self.shorter = max(int(0.03 * steps), 1)
        self.shortest = max(int(0.06 * steps), 1)
        self.waited = 0
        self.falls = torch.zeros_like(self.size[:, 0, 0, 0])  # (N,)
        self.halved = torch.ones_like(self.falls, dtype=torch.bool)
        self.previous: Tensor | None = None

    def __call__(self, images: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
        if self.previous is None:
            self._begin(images, gradient, values)
            move = torch.zeros_like(images)
            share = 1.0
        else:
            self._see(images, gradient, values)
            if self.waited == self.window:
                images, gradient = self._check(images, gradient)
            move = images - self.previous
            share = self.rule.inertia
        step = self.size * self.region.steepest(gradient)
        target = self.region.project(images - step, self.center)
        self.previous = images
        following = images + share * (target - images) + (1 - share) * move
        return self.region.project(following, self.center)

    def _begin(self, images: Tensor, gradient: Tensor, values: Tensor) -> None:
        self.values = values
        self.checked = values
        self.best = images
        self.best_values = values
        self.best_gradient = gradient

    def _see(self, images: Tensor, gradient: Tensor, values: Tensor) -> None:
        self.waited += 1
        self.falls += values < self.values
        self.values = values
        better = values < self.best_values
        self.best = torch.where(_wide(better), images, self.best)
        self.best_gradient = torch.where(_wide(better), gradient, self.best_gradient)
        self.best_values = torch.where(better, values, self.best_values)

    def _check(self, images: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Halve the step where the value fell too rarely, and go back to the best image there.

        Also where it has not improved at all since the last checkpoint, at an unchanged size.
        """
        rarely = self.falls <= self.rule.progress * self.window
        stuck = ~self.halved & (self.best_values >= self.checked)
        self.halved = rarely | stuck
        self.size = torch.where(_wide(self.halved), self.size / 2, self.size)
        self.checked = self.best_values
        self.waited = 0
        self.falls = torch.zeros_like(self.falls)
        self.window = max(self.window - self.shorter, self.shortest)
        back = _wide(self.halved)
        images = torch.where(back, self.best, images)
        return images, torch.where(back, self.best_gradient, gradient)


class _SparseStepper:
    """Auto-PGD in L1: what it remembers of the best image, and how many values a step changes.

    Source: Croce and Hein 2021, Alg. 1, with the constants of the authors' code. At each checkpoint
    the share of changed values becomes that of the best image / 1.5. Where that image became
    sparser, the step is as long as in the beginning and goes on from there; elsewhere it shrinks.
    Two deviations: pixels that cannot move are not counted among those of the largest gradient, and
    what a projection leaves of a pixel by rounding does not count as a change.
    """

    SHARE = 0.2
    SPARSER = 1.5
    SHORTER = 1.5
    SHORTEST = 10.0

    def __init__(self, region: Region, center: Tensor, steps: int, size: float | Tensor) -> None:
        self.region = region
        self.center = center
        self.longest = torch.zeros_like(center[:, :1, :1, :1]) + size  # (N, 1, 1, 1)
        self.size = self.longest
        self.count = center[0].numel() if len(center) else 1
        self.shares = self.size.new_full((len(center),), self.SHARE)  # (N,)
        self.changed = torch.full_like(self.shares, self.count)
        self.window = max(int(0.04 * steps), 1)
        self.waited = 0
        self.best: Tensor | None = None

    def __call__(self, images: Tensor, gradient: Tensor, values: Tensor) -> Tensor:
        if self.best is None:
            self.best = images
            self.best_values = values
            self.best_gradient = gradient
        else:
            better = values < self.best_values
            self.best = torch.where(_wide(better), images, self.best)
            self.best_gradient = torch.where(_wide(better), gradient, self.best_gradient)
            self.best_values = torch.where(better, values, self.best_values)
            self.waited += 1
            if self.waited == self.window:
                images, gradient = self._check(images, gradient)
        step = self.size * _sparse_step(_followed(images, gradient), self.shares)
        return self.region.project(images - step, self.center)

    def _check(self, images: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt share and size, and go back to the best image where it became sparser."""
        assert self.best is not None
        changes = (self.best - self.center).abs()
        # What a projection takes back may be left as rounding, which is no change.
        rounding = _ROUNDING * torch.finfo(changes.dtype).eps
        changed = (changes > rounding).flatten(1).sum(1).to(self.shares)  # (N,)
        is_sparser = _wide(changed / self.changed.clamp_min(1) < 0.95)
        self.shares = changed / self.count / self.SPARSER
        shorter = torch.maximum(self.size / self.SHORTER, self.longest / self.SHORTEST)
        self.size = torch.where(is_sparser, self.longest, shorter)
        self.changed = changed
        self.waited = 0
        images = torch.where(is_sparser, self.best, images)
        return images, torch.where(is_sparser, self.best_gradient, gradient)


def _followed(images: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient without pixels at the end of their range, which a step cannot move."""
    ends = torch.where(gradient > 0, 0.0, 1.0).to(images)
    return gradient.masked_fill(images == ends, 0.0)


def _sparse_step(gradient: Tensor, shares: Tensor) -> Tensor:
    """Return the step of L1 size 1 that changes a share of each image's values equally.

    Source: Croce and Hein 2021, Alg. 1: those of the largest gradient, by its sign; ties of the
    smallest of them belong to it.

    Args:
        gradient: `(N, C, H, W)`.
        shares: `(N,)`, in [0, 1]; one value is changed at least.
    """
    sizes = gradient.flatten(1).abs()  # (N, D)
    if not sizes.numel():
        return gradient.clone()
    count = sizes.shape[1]
    place = ((1 - shares) * count).long().clamp(0, count - 1)[:, None]
    smallest = sizes.sort(dim=1).values.gather(1, place)  # (N, 1)
    signs = gradient.flatten(1).sign() * (sizes >= smallest)
    changed = signs.abs().sum(1, keepdim=True).clamp_min(1)
    return (signs / changed).view_as(gradient)


def _wide(chosen: Tensor) -> Tensor:
    """Reshape `(N,)` so that it broadcasts over `(N, C, H, W)`."""
    return chosen.view(-1, 1, 1, 1)
