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
                "use Linf or L2"
            )

    def _onto_ball(self, images: Tensor, center: Tensor) -> Tensor:
        return images.clone()

    def sample(self, center: Tensor, generators: Generators) -> Tensor:
        """Refuse: an unbounded set has no uniform distribution."""
        raise UserError(
            "random_start: an Unbounded region cannot be sampled; use Linf or L2, or "
            "random_start=False"
        )

    steepest = Linf.steepest
    norm = Linf.norm


NORMS: dict[str, type[Linf | L2]] = {region.name: region for region in (Linf, L2)}


@typed
def region_of(norm: str, radius: float | str) -> Linf | L2:
    """Return the region that a config names by norm and radius.

    Raises: `UserError` for an unknown norm (with the nearest known one) or a bad radius.
    """
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    return NORMS[norm](Fraction(radius))
