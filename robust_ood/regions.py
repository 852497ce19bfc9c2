"""Regions: the set of images around each clean image that an attack may return.

A region answers three questions about its geometry - how to return to it (`project`), how to draw
a point of it (`sample`) and which unit step increases a linear function fastest (`steepest`) - and
measures perturbations (`norm`). Every region is intersected with the range of valid pixels,
`[0, 1]`, unless `clip=False`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError, unknown_name
from robust_ood.texts import shown


class Fraction(float):
    """A finite number that may be written as a fraction, such as the radius `Fraction("8/255")`.

    Raises: `UserError` for anything else, naming `field`.
    """

    def __new__(cls, value: float | str, field: str = "radius") -> Fraction:
        """Read a number, or a string that holds one or a quotient of two."""
        # Dividing floats rounds 8/255 as the standard library's `fractions` does, also reads
        # 2.5/255 and "8 / 255", and does not write out the billion digits of 1e-999999999.
        try:
            numerator, slash, denominator = str(value).partition("/")
            number = float(numerator)
            if slash:
                number /= float(denominator)
        except (ValueError, ZeroDivisionError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"{field}: {shown(value)} is not a finite number or a fraction such as 8/255"
            )
        return super().__new__(cls, number)


def _per_image(norms: Tensor, images: Tensor) -> Tensor:
    """Reshape `(N,)` so that it broadcasts over `(N, C, H, W)`."""
    return norms.view(-1, *[1] * (images.dim() - 1))


Generators = torch.Generator | Sequence[torch.Generator]


def _draw(shape: tuple[int, ...], generators: Generators, like: Tensor, *, normal: bool) -> Tensor:
    """Draw `(N, *shape)` noise for N images `like`, from one generator or one for each image."""
    draw = torch.randn if normal else torch.rand
    if isinstance(generators, torch.Generator):
        noise = draw((len(like), *shape), generator=generators, device=generators.device)
    elif not generators:  # no images
        noise = like.new_empty((0, *shape))
    else:
        drawn = []
        for source in generators:
            drawn.append(draw(shape, generator=source, device=source.device))
        noise = torch.stack(drawn)
    return noise.to(device=like.device, dtype=like.dtype)


@dataclass(frozen=True)
class Region(ABC):
    """A set around each image of a batch.

    Images and perturbations are `(N, C, H, W)` in pixel fractions.
    """

    radius: float | Fraction = math.inf
    clip: bool = True
    name: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", float(Fraction(self.radius)))
        if self.radius < 0:
            raise UserError(
                f"radius: {self.radius} is negative; a radius is >= 0 in pixel fractions"
            )

    @property
    def title(self) -> str:
        """What rows call the region's kind."""
        return self.name

    def at(self, indices: Tensor) -> Region:
        """Return the region of images with these sample indices `(N,)`.

        It is the region itself, where it is not one that is elsewhere in each image.
        """
        return self

    def scaled(self, factor: float) -> Region:
        """Return the region of `factor` times the radius, or of the largest radius it may have."""
        return replace(self, radius=factor * self.radius)

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        """Return the nearest allowed images around `center`.

        For L2 with `clip`, this is a point of both sets, in one pass.

        Clipping after the ball keeps the ball: `center` is a valid image, so no coordinate moves
        away from it.
        """
        inside = self._onto_ball(images, center)
        if not self.clip:
            return inside
        return inside.clamp_(0, 1)

    @abstractmethod
    def _onto_ball(self, images: Tensor, center: Tensor) -> Tensor:
        """Return new tensors within the radius of `center`."""

    @abstractmethod
    def sample(self, center: Tensor, generators: Generators) -> Tensor:
        """Draw one allowed image around each of `center`, uniformly from the ball, then clipped."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the unit step along which a linear function of this gradient grows fastest."""

    def move(self, images: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Return images `(N, C, H, W)` one steepest step of this size down the gradient.

        They may be outside the region; `project` brings them back. A size `(N, 1, 1, 1)` is one for
        each image.
        """
        return images - self.steepest(gradient) * size

    @abstractmethod
    def norm(self, perturbation: Tensor) -> Tensor:
        """Return the size of each perturbation, `(N,)`, in this region's norm."""


@dataclass(frozen=True)
class Linf(Region):
    """All images whose pixels differ by at most `radius`: `Linf(8/255)` or `Linf("8/255")`."""

    radius: float | Fraction
    clip: bool = True
    name: ClassVar[str] = "Linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.radius > 1 and self.clip:
            raise UserError(
                f"radius: {self.radius} is more than the whole pixel range, 1; 8 of 255 is '8/255'"
            )

    def scaled(self, factor: float) -> Linf:
        """Return the region of `factor` times the radius, at most 1 where pixels are clipped."""
        radius = factor * self.radius
        if self.clip:
            radius = min(radius, 1.0)
        return replace(self, radius=radius)

    def _onto_ball(self, images: Tensor, center: Tensor) -> Tensor:
        return torch.clamp(images, min=center - self.radius, max=center + self.radius)

    def sample(self, center: Tensor, generators: Generators) -> Tensor:
        """Draw uniformly from the cube around each image, then clip."""
        noise = _draw(tuple(center.shape[1:]), generators, center, normal=False).mul_(2).sub_(1)
        return self.project(center + self.radius * noise, center)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient."""
        return gradient.sign()

    def norm(self, perturbation: Tensor) -> Tensor:
        """Return the largest absolute pixel difference of each image, `(N,)`."""
        return perturbation.flatten(1).abs().amax(1)


@dataclass(frozen=True)
class L2(Region):
    """All images at a Euclidean distance, over all channels and pixels, of at most `radius`."""

    radius: float | Fraction
    clip: bool = True
    name: ClassVar[str] = "L2"

    def _onto_ball(self, images: Tensor, center: Tensor) -> Tensor:
        perturbation = images - center
        length = _per_image(self.norm(perturbation), images)
        shrink = (self.radius / length.clamp_min(torch.finfo(images.dtype).tiny)).clamp_max(1)
        return center + perturbation * shrink

    def sample(self, center: Tensor, generators: Generators) -> Tensor:
        """Draw uniformly from the ball around each image, then clip.

        The first D coordinates of a uniform point on the sphere in D + 2 dimensions are uniform in
        the D-ball.
        """
        dimensions = math.prod(center.shape[1:])
        sphere = _draw((dimensions + 2,), generators, center, normal=True)  # (N, D + 2)
        ball = sphere[:, :dimensions] / torch.linalg.vector_norm(sphere, dim=1, keepdim=True)
        return self.project(center + self.radius * ball.view_as(center), center)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the gradient divided by its length (zero where the gradient is zero)."""
        # Dividing by the largest entry first keeps the squares of tiny gradients above the smallest
        # float.
        peak = _per_image(gradient.flatten(1).abs().amax(1), gradient)
        scaled = gradient / peak.clamp_min(torch.finfo(gradient.dtype).tiny)
        return scaled / _per_image(self.norm(scaled), scaled).clamp_min(1e-12)

    def norm(self, perturbation: Tensor) -> Tensor:
        """Return the Euclidean length of each perturbation, `(N,)`."""
        length: Tensor = torch.linalg.vector_norm(perturbation.flatten(1), dim=1)
        return length


@dataclass(frozen=True)
class L1(Region):
    """All images that differ by at most `radius`, summed over all channels and pixels.

    Source: Croce and Hein 2021 ("Mind the box"). A radius is a sum: 12 is usual for images of
    32 x 32, and the sum over an Linf ball of 8/255 is 96 there.

    Args:
        radius: of the ball, >= 0.
        clip: whether pixels stay in [0, 1].
    """

    radius: float | Fraction
    clip: bool = True
    name: ClassVar[str] = "L1"

    def project(self, images: Tensor, center: Tensor) -> Tensor:
        """Return the nearest images of both the ball and the pixel range.

        Source: Croce and Hein 2021, Prop. 2.1. Clipping after the ball would give a point of both,
        and not the nearest: it leaves a part of the radius unspent.
        """
        if not self.clip:
            return self._onto_ball(images, center)
        perturbation = images - center
        room = torch.where(perturbation > 0, 1 - center, center).clamp_min(0)
        return (center + _within_l1(perturbation, room, self.radius)).clamp_(0, 1)

    def _onto_ball(self, images: Tensor, center: Tensor) -> Tensor:
        perturbation = images - center
        room = torch.full_like(perturbation, math.inf)
        return center + _within_l1(perturbation, room, self.radius)

    def sample(self, center: Tensor, generators: Generators) -> Tensor:
        """Draw uniformly from the ball around each image, then clip.

        Of D + 1 exponential draws divided by their sum, D are uniform where the sum is <= 1.
        """
        dimensions = math.prod(center.shape[1:])
        uniform = _draw((dimensions + 1,), generators, center, normal=False)  # (N, D + 1)
        signed = (2 * uniform - 1).clamp(-1 + 1e-7, 1 - 1e-7)
        heights = -torch.log1p(-signed.abs())
        total = heights.sum(1, keepdim=True).clamp_min(torch.finfo(center.dtype).tiny)
        ball = heights[:, :dimensions] / total * signed[:, :dimensions].sign()
        return self.project(center + self.radius * ball.view_as(center), center)

    def move(self, images: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Return images moved by this sum, so that a linear function falls as far as it can.

        Source: Croce and Hein 2021, Prop. 2.3. Pixels of the largest gradient go to the end of
        their range, one after the other, until the size is spent.
        """
        if not self.clip:
            return images - self.steepest(gradient) * size
        slopes = gradient.flatten(1)  # (N, D)
        order = slopes.abs().argsort(dim=1, descending=True, stable=True)
        pixels = images.flatten(1)
        room = torch.where(slopes > 0, pixels, 1 - pixels).clamp_min(0) * (slopes != 0)
        room = room.gather(1, order)
        budget = torch.as_tensor(size, dtype=images.dtype, device=images.device).reshape(-1, 1)
        spent_before = room.cumsum(1) - room
        used = torch.minimum((budget - spent_before).clamp_min(0), room)
        step = torch.zeros_like(slopes).scatter(1, order, used) * slopes.sign()
        return images - step.view_as(images)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the sign of the largest entry, and zero elsewhere."""
        slopes = gradient.flatten(1)  # (N, D)
        if not slopes.numel():
            return gradient.clone()
        place = slopes.abs().argmax(dim=1, keepdim=True)
        step = torch.zeros_like(slopes).scatter(1, place, slopes.gather(1, place).sign())
        return step.view_as(gradient)

    def norm(self, perturbation: Tensor) -> Tensor:
        """Return the sum of absolute pixel differences of each image, `(N,)`."""
        return perturbation.flatten(1).abs().sum(1)


def _within_l1(perturbation: Tensor, room: Tensor, radius: float) -> Tensor:
    """Return the nearest perturbations of at most this L1 size, each value within its room.

    They are `sign(d) min(max(|d| - t, 0), room)` with one threshold t >= 0 an image. What is spent
    falls with t, and is linear between the breakpoints |d| and |d| - room: sorted, they give t
    exactly.

    Args:
        perturbation, room: `(N, C, H, W)`, room >= 0.
        radius: >= 0.
    """
    # Sums of many pixels lose what the last steps of an attack gain. Apple's devices have no more.
    exact = torch.float32 if perturbation.device.type == "mps" else torch.float64
    sizes = perturbation.flatten(1).abs().to(exact)  # (N, D)
    rooms = room.flatten(1).to(exact)
    if not sizes.numel():
        return perturbation
    ends = torch.cat([sizes, (sizes - rooms).clamp_min(0)], dim=1)  # (N, 2 D)
    # Stable: of equal ones those that add come first, so that counts are never negative.
    points, order = ends.sort(dim=1, descending=True, stable=True)
    signs = torch.where(order < sizes.shape[1], 1.0, -1.0).to(exact)
    counts = signs.cumsum(1)
    totals = (signs * points).cumsum(1)
    # With the threshold at each breakpoint; it does not fall, but by rounding.
    spent = (totals - counts * points).cummax(1).values
    limit = max(radius, torch.finfo(exact).tiny)  # of radius 0, the last that spends nothing
    last = ((spent < limit).sum(1, keepdim=True) - 1).clamp_min(0)  # (N, 1)
    count = counts.gather(1, last)
    threshold = (totals.gather(1, last) - radius) / count.clamp_min(1)
    threshold = torch.where(count > 0, threshold, points.gather(1, last))
    is_outside = torch.minimum(sizes, rooms).sum(1, keepdim=True) > radius
    threshold = torch.where(is_outside, threshold.clamp_min(0), 0.0)
    kept = torch.minimum((sizes - threshold).clamp_min(0), rooms)
    return perturbation.sign() * kept.view_as(perturbation).to(perturbation.dtype)


@dataclass(frozen=True)
class Unbounded(Region):
    """No limit on the perturbation; `clip=False` also allows pixels outside `[0, 1]`.

    ODIN and PRO use it. Steps are sign steps and sizes are largest pixel differences, as of `Linf`.
    """

    radius: float = math.inf
    clip: bool = True
    name: ClassVar[str] = "Unbounded"

    def __post_init__(self) -> None:
        if not isinstance(self.radius, float) or self.radius != math.inf:
            raise UserError(
                f"radius: {shown(self.radius)} given, but an Unbounded region has none; "
                "use Linf, L2 or L1"
            )

    def _onto_ball(self, images: Tensor, center: Tensor) -> Tensor:
        return images.clone()

    def sample(self, center: Tensor, generators: Generators) -> Tensor:
        """Refuse: an unbounded set has no uniform distribution."""
        raise UserError(
            "random_start: an Unbounded region cannot be sampled; use Linf, L2 or L1, or "
            "random_start=False"
        )

    steepest = Linf.steepest
    norm = Linf.norm


NORMS: dict[str, type[Linf | L2 | L1]] = {region.name: region for region in (Linf, L2, L1)}


@typed
def region_of(norm: str, radius: float | str) -> Linf | L2 | L1:
    """Return the region that a config names by norm and radius.

    Raises: `UserError` for an unknown norm (with the nearest known one) or a bad radius.
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    return NORMS[norm](Fraction(radius))
