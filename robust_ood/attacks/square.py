"""The Square attack: random search that asks for nothing but the score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.arguments import check_fields
from robust_ood.attacks.apply import Candidate, Settings
from robust_ood.attacks.objectives import Direction, wrong_label
from robust_ood.deprecation import warn_renamed
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.perturb import Objective
from robust_ood.randomness import generators
from robust_ood.regions import L2, Linf, Region

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries out of 10,000


@dataclass(frozen=True)
class Square:
    """Settings of the Square attack, a black-box attack on scores of images `(N, C, H, W)`.

    Source: Andriushchenko et al. 2020, Alg. 1-3. Differs from the public code in that each image
    has its own squares, keyed by its sample index.

    Args:
        region: `Linf` or `L2`.
        queries: scores asked for, >= 1; the schedule of square sizes is scaled to it.
        share: first share of an image's pixels that a square covers, in (0, 1].
        seed: seed of the squares.
    """

    region: Region
    queries: int = 1000
    share: float = 0.8
    seed: int = 0
    keeps_clean = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.region, (Linf, L2)):
            raise UserError(f"region: Square knows Linf and L2, not {self.region.name}")
        if self.queries < 1:
            raise UserError(f"queries: {self.queries} is not a whole number >= 1")
        if not 0 < self.share <= 1:
            raise UserError(f"share: {self.share} is not in (0, 1]")

    def settings(self) -> Settings:
        """Return norm, radius and queries."""
        return Settings(
            norm=self.region.name, radius=self.region.radius, steps=self.queries, restarts=1
        )

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield one candidate that makes `direction * score` small."""
        yield Candidate(self.run(lambda x: direction * detector(x), images, indices), "square")

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield one candidate that makes the margin of the labels small."""
        yield Candidate(self.run(wrong_label(net, labels, "margin"), images, indices), "square")

    def run(self, objective: Objective, images: Tensor, indices: Tensor) -> Tensor:
        """Return the images with the smallest values that the queries found."""
        channels, height, width = images.shape[1:]
        radius = self.region.radius
        draws = generators(self.seed, "square", indices=indices.tolist())
        begin = _tiles
        propose = _move_mass
        if isinstance(self.region, Linf):
            begin = _stripes
            propose = _square
        with torch.no_grad():
            noise = _uniform((channels, height, width), draws, images)  # (N, C, H, W)
            best = self.region.project(images + begin(noise, radius), images)
            lowest = objective(best)
            for query in range(self.queries - 1):
                size = self._size(query, height, width)
                uniform = _uniform((5 + channels,), draws, images)  # (N, 5 + C)
                perturbation = propose(best - images, uniform, size, radius)
                candidate = self.region.project(images + perturbation, images)
                values = objective(candidate)
                better = values < lowest
                best = torch.where(better.view(-1, 1, 1, 1), candidate, best)
                lowest = torch.where(better, values, lowest)
        return best

    def search(self, *arguments: Any, **settings: Any) -> Tensor:
        """Return the same as `run`, its name from the next release on."""
        warn_renamed("Square.search", "Square.run")
        return self.run(*arguments, **settings)

    def _size(self, query: int, height: int, width: int) -> int:
        """Return the side of the square at a query."""
        halvings = sum(query * 10_000 // self.queries > bound for bound in _HALVINGS)
        side = max(round(math.sqrt(self.share / 2**halvings * height * width)), 1)
        if isinstance(self.region, L2):
            side = max(side, 3)
            side += side % 2 == 0
        return min(side, height, width)


def _uniform(shape: tuple[int, ...], draws: Sequence[torch.Generator], like: Tensor) -> Tensor:
    return torch.stack([torch.rand(shape, generator=draw) for draw in draws]).to(like)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _stripes(noise: Tensor, radius: float) -> Tensor:
    """Return vertical stripes of the radius's height, the first Linf perturbation."""
    return (radius * _signs(noise[:, :, :1])).expand_as(noise)


def _square(perturbation: Tensor, uniform: Tensor, size: int, radius: float) -> Tensor:
    """Return the perturbation with one square of each image set to plus or minus the radius.

    Each channel has a sign of its own.
    """
    _, _, inside = _window(perturbation, uniform[:, 0], uniform[:, 1], size)
    return torch.where(inside, radius * _signs(uniform[:, 5:])[:, :, None, None], perturbation)


def _tiles(noise: Tensor, radius: float) -> Tensor:
    """Return 5 x 5 bumps of random sign, scaled to the radius: the first L2 perturbation."""
    height, width = noise.shape[2:]
    size = max(min(height, width) // 5, 1)
    bump = _bump(size).to(noise)
    grid = torch.zeros_like(noise)
    for top in range(0, height - size + 1, size):
        for left in range(0, width - size + 1, size):
            sign = _signs(noise[:, :, top, left])[:, :, None, None]  # (N, C, 1, 1)
            grid[:, :, top : top + size, left : left + size] = bump * sign
    return _to_length(grid, radius)


def _move_mass(perturbation: Tensor, uniform: Tensor, size: int, radius: float) -> Tensor:
    """Return the perturbation with one window emptied, whose energy another gets as a bump.

    What is unspent of the radius goes there, too.
    """
    rows, columns, into = _window(perturbation, uniform[:, 0], uniform[:, 1], size)
    _, _, out_of = _window(perturbation, uniform[:, 2], uniform[:, 3], size)
    bump = _bump(size).to(perturbation)
    turned = torch.where((uniform[:, 4] > 0.5)[:, None, None], bump.T, bump)  # (N, s, s)
    image = torch.arange(len(perturbation), device=perturbation.device)[:, None, None]
    shape = turned[image, rows[:, :, None], columns[:, None, :]][:, None] * into  # (N, 1, H, W)
    old = perturbation * into
    new = shape * _signs(uniform[:, 5:])[:, :, None, None] + old / _length(old, (2, 3))
    spent = perturbation.square().sum((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    unspent = (radius**2 - spent).clamp_min(0) / perturbation.shape[1]
    in_windows = (perturbation * (into | out_of)).square().sum((2, 3), keepdim=True)
    energy = unspent + in_windows  # (N, C, 1, 1)
    bumps = new / _length(new, (2, 3)) * energy.sqrt()
    moved = torch.where(into, bumps, perturbation.masked_fill(out_of, 0.0))
    return _to_length(moved, radius)


def _window(like: Tensor, down: Tensor, right: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each pixel's row and column in a window of each image, and whether it is inside.

    Rows `(N, H)` and columns `(N, W)` are clamped to the window; inside is `(N, 1, H, W)`.
    """
    height, width = like.shape[2:]
    top = (down * (height - size + 1)).long()[:, None]
    left = (right * (width - size + 1)).long()[:, None]
    rows = torch.arange(height, device=like.device) - top  # (N, H)
    columns = torch.arange(width, device=like.device) - left  # (N, W)
    in_rows = (rows >= 0) & (rows < size)
    in_columns = (columns >= 0) & (columns < size)
    inside = in_rows[:, :, None] & in_columns[:, None, :]  # (N, H, W)
    return rows.clamp(0, size - 1), columns.clamp(0, size - 1), inside[:, None]


@lru_cache
def _bump(size: int) -> Tensor:
    """Return two half-windows of opposite sign, each falling off from its middle (Eq. 2).

    Together they have length 1.
    """
    bump = torch.zeros(size, size)
    half = size // 2
    for rows, sign in ((slice(0, half), 1.0), (slice(half, size), -1.0)):
        height = len(range(size)[rows])
        down = (torch.arange(height) - height // 2).abs()[:, None]
        across = (torch.arange(size) - size // 2).abs()
        ring = torch.maximum(down, across)
        terms = torch.tensor([1 / (k + 1) ** 2 for k in range(size // 2 + 1)])
        heights = terms.flip(0).cumsum(0).flip(0)[ring]
        bump[rows] = sign * heights / heights.norm().clamp_min(1e-12)
    bump /= bump.norm()
    return bump


def _length(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)
    return lengths.clamp_min(1e-12)


def _to_length(tensor: Tensor, radius: float) -> Tensor:
    return tensor / _length(tensor, (1, 2, 3)) * radius
