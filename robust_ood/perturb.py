"""The engine: the only loop in the package that takes gradient steps on images.

Attacks on detectors and classifiers, adversarial training, ODIN, PRO and the safe-spot search are
all calls of `minimize`. It knows no labels, no networks and no detectors: an objective is any
callable from images to one value per image, and the engine makes that value small. Whoever wants it
large negates it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.modes import differentiating, ordinary
from robust_ood.regions import Region
from robust_ood.rules import Rule, Steepest

__all__ = ["Minimum", "Objective", "Trace", "minimize"]

Objective = Callable[[Tensor], Tensor]
"""Images `(N, C, H, W)` to one value per image `(N,)`, images independent of each other."""

JudgedObjective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The same with a second value per image, `(N,)`, by which the best iterate is chosen."""


class Trace(NamedTuple):
    """Values and perturbation sizes at the start and after each step, each `(steps + 1, N)`."""

    values: Tensor
    linf: Tensor
    l2: Tensor


class Minimum(NamedTuple):
    """Where the engine ended.

    images: `(N, C, H, W)`, detached. values: the kept images' values `(N,)` by the judge (by the
    objective where there is none), or None with `keep="last"`, which does not spend a forward pass
    on them. last: the last iterate, whatever was kept. trace: None unless asked for.
    """

    images: Tensor
    values: Tensor | None
    last: Tensor
    trace: Trace | None


@typed
def minimize(  # noqa: PLR0913  # the one loop: its arguments are all that varies
    objective: Objective | JudgedObjective,
    images: Tensor,
    region: Region,
    *,
    steps: int,
    step_size: float | Tensor,
    rule: Rule | None = None,
    start: Tensor | None = None,
    keep: Literal["best", "last"] = "best",
    judge: Objective | None = None,
    trace: bool = False,
) -> Minimum:
    """Search, for each image, the point of its region where the objective is smallest.

    Args:
        objective: callable to minimise, `(N, C, H, W)` in [0, 1] to `(N,)`; differentiable. It may
            give a pair: what is minimised, and what `"best"` is measured by, which then costs no
            pass of its own.
        images: clean images `(N, C, H, W)`, the region's centres.
        region: the allowed set, `Linf(8/255)`, `L2(0.5)` or `Unbounded()`.
        steps: number of gradient steps, >= 1.
        step_size: size of a step in the region's norm, in pixel fractions; a tensor must broadcast
            over the images.
        rule: how a gradient becomes a step, `Steepest()` by default.
        start: first iterate, projected into the region; the clean images by default.
        keep: `"best"` returns each image's best iterate out of the steps + 1 seen, start included;
            `"last"` the final one, and saves one forward pass.
        judge: what `"best"` is measured by where that is not the objective's to give (the true
            score, while the objective is its differentiable stand-in); evaluated without gradient
            at every iterate.
        trace: also record values and perturbation sizes at every iterate.

    Returns:
        A `Minimum`: images, values, last iterate, trace.

    Raises:
        UserError: no steps, an unknown `keep`, an objective that does not give one value per image,
            or one without gradient.

    Nothing is left behind: parameter gradients and flags are untouched, no random number is drawn,
    and it works under `no_grad`, `inference_mode` and autocast. Under float16 autocast the
    objective is scaled, image by image, before differentiation, because small input gradients would
    underflow to steps of size zero.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UserError(f"steps: {steps!r} is not a number of gradient steps >= 1")
    if keep not in ("best", "last"):
        raise UserError(f"keep: {keep!r} is neither 'best' nor 'last'")
    _check_step_size(step_size, images)
    _check_images(images, start)
    with differentiating():
        center = ordinary(images)
        current = center.clone() if start is None else region.project(ordinary(start), center)
        advance = (rule or Steepest()).begin(region, center, steps, step_size)
        differentiate = _Differentiator(objective, center)
        recorder = _Recorder(center, judge, best=keep == "best", trace=trace)
        for _ in range(steps):
            values, judged, gradient = differentiate(current)
            recorder.see(current, values, judged)
            current = advance(current, gradient, values)
        if recorder.wants_last:
            with torch.no_grad():
                if judge is not None and not trace:
                    # The judge alone decides, and then nobody needs the objective's value.
                    recorder.see(current, None, None)
                else:
                    recorder.see(current, *both_values(objective(current)))
        return recorder.result(current)


def _check_images(images: Tensor, start: Tensor | None) -> None:
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise UserError(f"images: expected floating-point numbers, got {kind}")
    if images.dim() != 4:
        raise UserError(f"images: expected shape (N, C, H, W), got {tuple(images.shape)}")
    if start is not None and (start.shape != images.shape or start.dtype != images.dtype):
        raise UserError(
            f"start: expected {images.dtype} {tuple(images.shape)} as the images, got "
            f"{start.dtype} {tuple(start.shape)}"
        )


def _check_step_size(step_size: float | Tensor, images: Tensor) -> None:
    if not isinstance(step_size, Tensor):
        if not step_size >= 0 or math.isinf(step_size):
            raise UserError(f"step_size: expected a finite number >= 0, got {step_size}")
        return
    try:
        shape = torch.broadcast_shapes(step_size.shape, images.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        shape = torch.Size()
    if shape != images.shape or not step_size.is_floating_point():
        raise UserError(
            f"step_size: expected floats that broadcast over images {tuple(images.shape)}, got "
            f"{step_size.dtype} {tuple(step_size.shape)}"
        )
    # One look at the values, before the loop, which waits for no other device than the processor.
    if step_size.device.type == "cpu" and not bool((step_size >= 0).all()):
        raise UserError("step_size: a step is negative or NaN; expected numbers >= 0")


def both_values(values: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what is minimised and what the best is measured by; often they are the same."""
    if isinstance(values, tuple):
        return values
    return values, values


class _Differentiator:
    """Values and input gradients of an objective, scaled where half precision needs it."""

    def __init__(self, objective: Objective | JudgedObjective, like: Tensor) -> None:
        self.objective = objective
        kind = like.device.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        self.scale = like.new_full((len(like),), 2.0**10) if half else None  # (N,)
        # The scale doubles after each step up to here: a value's own gradient of 2^16 would
        # overflow float16.
        self.limit = like.new_full((len(like),), 2.0**15)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        leaf = images.detach().requires_grad_()
        values, judged = both_values(self.objective(leaf))
        if values.shape != images.shape[:1]:
            raise UserError(
                f"objective: gave shape {tuple(values.shape)} for {len(images)} images, expected "
                "one value each"
            )
        if not values.requires_grad:
            raise UserError(
                "objective: its values carry no gradient, so it cannot be attacked by gradients; "
                "give the detector a differentiable surrogate"
            )
        total = values if self.scale is None else values * self.scale
        # Of the images alone: parameters' gradients are neither computed nor touched.
        (gradient,) = torch.autograd.grad(total.sum(), leaf, allow_unused=True)
        if gradient is None:
            raise UserError(
                "objective: its values do not depend on the images, so it cannot be attacked by "
                "gradients; give the detector a differentiable surrogate"
            )
        return values.detach(), judged.detach(), self._unscale(gradient)

    def _unscale(self, gradient: Tensor) -> Tensor:
        # A non-finite entry would turn its pixel into NaN for good; zero leaves the pixel where it
        # is for this step.
        finite = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        if self.scale is None:
            return finite
        used = self.scale
        overflowed = ~gradient.isfinite().flatten(1).all(1)  # (N,), stays on the device
        # A scale that overflowed once is not tried again, because each overflow costs a step. Nor
        # may the scale reach zero where an objective's gradient is never finite: 0 / 0 would turn
        # every pixel into NaN.
        self.limit = torch.where(overflowed, used / 2, self.limit).clamp_min(2.0**-15)
        changed = torch.where(overflowed, used / 16, used * 2).clamp_min(2.0**-15)
        self.scale = torch.minimum(changed, self.limit)
        return finite / used.view(-1, 1, 1, 1)


class _Recorder:
    """What the engine keeps of the iterates it sees."""

    def __init__(self, center: Tensor, judge: Objective | None, *, best: bool, trace: bool) -> None:
        self.center = center
        self.judge = judge
        self.best = best
        self.traced = trace
        self.images = center
        self.values = center.new_full((len(center),), torch.inf)
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.wants_last = best or trace

    def see(self, images: Tensor, values: Tensor | None, judged: Tensor | None) -> None:
        if self.best:
            if self.judge is not None:
                with torch.no_grad():
                    judged = self.judge(images)
            assert judged is not None
            better = judged < self.values  # NaN is never better
            self.values = torch.where(better, judged, self.values.to(judged.dtype))  # never rounded
            self.images = torch.where(better.view(-1, 1, 1, 1), images, self.images)
        if self.traced:
            assert values is not None
            flat = (images - self.center).flatten(1)
            self.rows.append((values, flat.abs().amax(1), torch.linalg.vector_norm(flat, dim=1)))

    def result(self, last: Tensor) -> Minimum:
        trace = None
        if self.traced:
            values, linf, l2 = map(torch.stack, zip(*self.rows, strict=True))
            trace = Trace(values, linf, l2)
        if self.best:
            return Minimum(self.images, self.values, last, trace)
        return Minimum(last, None, last, trace)
