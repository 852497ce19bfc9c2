"""Bounds of a smoothed score anywhere in an L2 ball, by order statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.certify.confidence import Ranks, bounding_ranks, least_draws
from robust_ood.certify.noise import Noise, checked_indices
from robust_ood.detectors import Detector
from robust_ood.detectors.smoothing import (
    check_draws,
    check_share,
    checked_sigma,
    quantile_rank,
    refuse_smoothed,
)
from robust_ood.errors import UserError, unknown_name
from robust_ood.inputs import checked
from robust_ood.regions import NORMS, Fraction

Radius = float | str
SEED_PURPOSE = "smoothing"
"""What the draws are for that estimate: scores and classes share them."""
_FEASIBLE = 1e12
"""Draws of an image that nobody makes."""


@dataclass(frozen=True)
class ScoreBounds:
    """What is certified of smoothed scores, on the CPU.

    Args:
        lower, upper: bounds of the smoothed score anywhere in the ball, `(N,)`, or `(R, N)` for R
            radii; -inf and inf where the draws cannot bound it.
        value: the smoothed score of each image itself, as estimated, `(N,)`.
        clean_lower, clean_upper: bounds of the smoothed score of the image itself, `(N,)`.
        radius: of the ball in L2, pixel fractions; R of them in a tuple.
        sigma, draws, alpha, quantile: as they were asked for.
    """

    lower: Tensor
    upper: Tensor
    value: Tensor
    clean_lower: Tensor
    clean_upper: Tensor
    radius: float | tuple[float, ...]
    sigma: float
    draws: int
    alpha: float
    quantile: float

    def at(self, radius: Radius) -> ScoreBounds:
        """Return the bounds at one of the radii, `(N,)`.

        Raises: `UserError` for a radius that was not asked for.
        """
        wanted = float(Fraction(radius))
        radii = self.radius if isinstance(self.radius, tuple) else (self.radius,)
        if wanted not in radii:
            known = ", ".join(f"{known:g}" for known in radii)
            raise UserError(f"radius: expected one of {known}, got {radius}")
        if not isinstance(self.radius, tuple):
            return self
        row = radii.index(wanted)  # of `lower` and `upper`, (R, N)
        return replace(self, lower=self.lower[row], upper=self.upper[row], radius=wanted)

    @property
    def claim(self) -> str:
        """What the bounds say, in one sentence for a report."""
        return (
            f"certified: each bound holds with probability {1 - self.alpha:.6g}, for the "
            f"{self.quantile:g}-quantile of the score under Gaussian noise of sigma "
            f"{self.sigma:g}, by {self.draws} draws an image"
        )


@dataclass(frozen=True)
class Question:
    """What is asked of smoothed scores, checked.

    Args:
        radii: of L2 balls, >= 0.
        sigma, draws, alpha, quantile: as of `score_bounds`.

    Raises:
        UserError: a value out of range, or draws that bound nothing at any radius.
    """

    radii: tuple[float, ...]
    sigma: float
    draws: int
    alpha: float
    quantile: float

    def __post_init__(self) -> None:
        check_draws("draws", self.draws)
        check_share("alpha", self.alpha)
        check_share("quantile", self.quantile)
        # Draws that bound some radii are worth their passes: the others come out unbounded.
        if all(self.ranks(radius) == (None, None) for radius in self.radii):
            smallest = min(self.radii)
            needed = least_draws(smallest, self.sigma, self.alpha, self.quantile)
            enough = f"{needed:,.0f} or more are needed"
            if not needed < _FEASIBLE:
                enough = "no feasible number does; expected a smaller radius or a larger sigma"
            raise UserError(
                f"draws: {self.draws} bound nothing at the L2 radius {smallest:g} with sigma "
                f"{self.sigma:g} and alpha {self.alpha:g}; {enough}"
            )

    def ranks(self, radius: float) -> Ranks:
        """Return which of the sorted scores bound the smoothed score within a radius."""
        return bounding_ranks(radius, self.sigma, self.draws, self.alpha, self.quantile)

    @cached_property
    def all_ranks(self) -> list[Ranks]:
        """Those of the image itself, then those at each radius."""
        return [self.ranks(radius) for radius in (0.0, *self.radii)]

    def column(self, scores: Tensor) -> Tensor:
        """Return one image's numbers, `(3 + 2 R,)`, from its scores `(draws,)`.

        They are its value, its own bounds, then the lower and the upper bound at each radius.
        """
        if scores.isnan().any():
            raise UserError("detector: it gives NaN for a noisy image; expected finite scores")
        ordered = scores.sort().values
        # From the same order statistics as the bounds, so that it is between them.
        value = ordered[quantile_rank(self.quantile, self.draws) - 1]
        numbers = [value]
        for ranks in self.all_ranks:
            # What no score bounds is unbounded.
            lower = value.new_tensor(-math.inf)
            upper = value.new_tensor(math.inf)
            if ranks.lower is not None:
                lower = ordered[ranks.lower - 1]
            if ranks.upper is not None:
                upper = ordered[ranks.upper - 1]
            numbers += [lower, upper]
        return torch.stack(numbers)

    def answer(self, columns: list[Tensor], *, single: bool) -> ScoreBounds:
        """Return the columns of all images as bounds, `single` for one radius and no list of it."""
        table = torch.empty(3 + 2 * len(self.radii), 0)  # `stack` needs one image
        if columns:
            table = torch.stack(columns, dim=1)  # (3 + 2 R, N)
        lower = table[3::2]  # (R, N)
        upper = table[4::2]
        radius: float | tuple[float, ...] = self.radii
        if single:
            lower = lower[0]
            upper = upper[0]
            radius = self.radii[0]
        return ScoreBounds(
            lower,
            upper,
            value=table[0],
            clean_lower=table[1],
            clean_upper=table[2],
            radius=radius,
            sigma=self.sigma,
            draws=self.draws,
            alpha=self.alpha,
            quantile=self.quantile,
        )


@overload
def score_bounds(
    detector: Detector,
    images: Tensor,
    *,
    norm: str = ...,
    radius: Radius | Sequence[Radius],
    sigma: Radius,
    draws: int = ...,
    alpha: float = ...,
    quantile: float = ...,
    seed: int = ...,
    indices: Tensor | None = ...,
    batch_size: int = ...,
) -> ScoreBounds: ...


@overload
def score_bounds(
    detector: Mapping[str, Detector],
    images: Tensor,
    *,
    norm: str = ...,
    radius: Radius | Sequence[Radius],
    sigma: Radius,
    draws: int = ...,
    alpha: float = ...,
    quantile: float = ...,
    seed: int = ...,
    indices: Tensor | None = ...,
    batch_size: int = ...,
) -> dict[str, ScoreBounds]: ...


@typed
def score_bounds(  # noqa: PLR0913  # what a certificate depends on
    detector: Detector | Mapping[str, Detector],
    images: Tensor,
    *,
    norm: str = "L2",
    radius: Radius | Sequence[Radius],
    sigma: Radius,
    draws: int = 10_000,
    alpha: float = 0.001,
    quantile: float = 0.5,
    seed: int = 0,
    indices: Tensor | None = None,
    batch_size: int = 512,
) -> ScoreBounds | dict[str, ScoreBounds]:
    """Return bounds that no attack within an L2 radius moves the smoothed score past.

    Source: Chiang et al. 2020 (quantiles under noise); nothing is assumed of the detector, and no
    gradient is taken. What is bounded is the quantile of the score under Gaussian noise, over all
    noise and not over the draws: `detectors.Smoothed` with many draws, not the detector alone.

    Args:
        detector: a fitted detector, or several by name: those that read the outputs of one network
            share its passes.
        images: `(N, C, H, W)` in [0, 1], on the detector's device. They are taken one after the
            other, and memory grows neither with them nor with the draws but by the scores.
        norm: "L2"; Gaussian noise certifies no other.
        radius: one, or several that share the draws.
        sigma: standard deviation of the noise in pixel fractions, > 0.
        draws: noisy copies of each image.
        alpha: the probability with which a bound may fail, in (0, 1): for each image and each of
            the two sides. See `bonferroni` for all together.
        quantile: which one, in (0, 1).
        seed: of the noise.
        indices: the images' indices in their set `(N,)`, which key the noise; 0..N-1 by default.
            An image's bounds depend on its index, never on the images beside it.
        batch_size: noisy copies that are scored at a time.

    Returns:
        The bounds, or those of each detector by name.

    Raises:
        UserError: another norm (with the L2 radius that covers it), draws too few to bound
            anything at any radius (with how many are needed), a detector that is random itself or
            smoothed already, and arguments outside the ranges above.
    """
    named = named_detectors(detector)
    images = checked(images)
    radii = read_radii(radius, norm, images)
    question = Question(radii, checked_sigma(sigma), draws, alpha, quantile)
    check_draws("batch_size", batch_size)
    noise = Noise(question.sigma, seed, batch_size)
    columns: dict[str, list[Tensor]] = {name: [] for name in named}
    for position, index in enumerate(checked_indices(indices, len(images))):
        # Only an image's own scores are kept, and of them only what bounds.
        if position == 0:
            noise.refuse_random(named, images[0])
        scores = noise.scores(named, images[position], draws, SEED_PURPOSE, index)
        for name in named:
            columns[name].append(question.column(scores[name]))
    bounds = {}
    for name in named:
        bounds[name] = question.answer(columns[name], single=is_single(radius))
    return bounds if isinstance(detector, Mapping) else bounds["detector"]


def is_single(radius: Radius | Sequence[Radius]) -> bool:
    """Whether one radius was asked for, and not a list."""
    return isinstance(radius, str) or not isinstance(radius, Sequence)


def named_detectors(detector: Detector | Mapping[str, Detector]) -> dict[str, Detector]:
    """Return the detectors to certify by name, or raise `UserError` where they cannot be."""
    # One detector is several of which there is one.
    named = {"detector": detector} if not isinstance(detector, Mapping) else dict(detector)
    if not named:
        raise UserError("detector: none given; expected one, or several by name")
    for member in named.values():
        if not isinstance(member, Detector):
            raise UserError(f"detector: expected a detector, got a {type(member).__name__}")
        refuse_smoothed(member)
    return named


def read_radii(radius: Radius | Sequence[Radius], norm: str, images: Tensor) -> tuple[float, ...]:
    """Return L2 radii as numbers >= 0, or raise `UserError` for other numbers and other norms."""
    given = [radius] if isinstance(radius, str) or not isinstance(radius, Sequence) else radius
    radii = tuple(float(Fraction(number)) for number in given)
    if not radii:
        raise UserError("radius: none given; expected one or several")
    if min(radii) < 0:
        raise UserError(f"radius: {min(radii):g} is negative; a radius is >= 0 in pixel fractions")
    if norm not in NORMS:
        raise unknown_name("norm", norm, NORMS)
    if norm == "L1":  # an L1 ball lies inside the L2 ball of its radius
        raise UserError(
            f"norm: Gaussian smoothing certifies L2, not L1; the L1 radius {max(radii):.4g} is "
            "covered by the same L2 radius: ask for norm L2 with that"
        )
    if norm != "L2":
        # A cube of this half-width lies inside the ball through its corners.
        size = math.prod(images.shape[1:])
        covering = max(radii) * math.sqrt(size)
        shape = " x ".join(map(str, images.shape[1:]))
        raise UserError(
            f"norm: Gaussian smoothing certifies L2, not {norm}; the {norm} radius "
            f"{max(radii):.4g} of {shape} images is covered by the L2 radius {covering:.4g} "
            f"(radius x sqrt({size})): ask for norm L2 with that"
        )
    return radii
