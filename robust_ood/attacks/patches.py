"""Patches: a square in which pixels are free, while the rest of the image stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from robust_ood.arguments import check_fields, typed
from robust_ood.attacks.apply import Candidate, Settings
from robust_ood.attacks.budget import check_count
from robust_ood.attacks.objectives import Direction
from robust_ood.attacks.pgd import PGD
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.randomness import generators
from robust_ood.regions import Fraction, Generators, Linf, Region
from robust_ood.settings import configured
from robust_ood.texts import shown

Position = Literal["random", "center"] | list[int]
"""Where a patch is; a list is the row and column of its upper left corner."""


@dataclass(frozen=True)
class Patch(Region):
    """All images `(N, C, H, W)` that differ inside one square alone.

    Source: Brown et al. 2017, and Karmon et al. 2018, who make one for each image. It is a region
    like others: any attack by gradient steps works in it.

    Args:
        radius: how far a pixel of the square may be from the clean one, in (0, 1]; 1 leaves it
            free.
        clip: whether pixels stay in [0, 1].
        side: of the square, in pixels; this or `share`.
        share: of the image's area that the square covers, in (0, 1].
        position: "random" is another place for each image, "center" the middle, `[row, column]` the
            upper left corner.
        seed: of the random places, which are keyed by sample index.
        trial: another number, another random place.
        places: of the images at hand, as two numbers in [0, 1) for each; `at` sets them.
    """

    radius: float | Fraction = 1.0
    clip: bool = True
    side: int | None = None
    share: float | None = None
    position: Position = "random"
    seed: int = 0
    trial: int = 0
    places: tuple[tuple[float, float], ...] | None = None
    name: ClassVar[str] = "patch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.position, tuple):
            object.__setattr__(self, "position", list(self.position))
        check_fields(self)
        if not 0 < self.radius <= 1:
            raise UserError(f"radius: {self.radius} is not in (0, 1]; 1 leaves the patch free")
        if (self.side is None) == (self.share is None):
            raise UserError("side: expected the patch's side in pixels, or its share of the image")
        if self.side is not None:
            check_count("side", self.side)
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"share: {self.share} is not in (0, 1]")
        if isinstance(self.position, list):
            is_corner = len(self.position) == 2 and min(self.position) >= 0
            if not is_corner:
                raise UserError(
                    f"position: expected random, center or [row, column] of the upper left corner, "
                    f"got {shown(self.position)}"
                )

    def __hash__(self) -> int:
        return hash(repr(self))  # a list has no hash

    @property
    def title(self) -> str:
        """The kind and size of the patch, as rows say it."""
        if self.side is not None:
            return f"patch {self.side} px"
        assert self.share is not None
        return f"patch {100 * self.share:g} %"

    def scaled(self, factor: float) -> Patch:
        """Return the patch of `factor` times the side, the whole image at most."""
        if self.side is not None:
            return replace(self, side=max(1, round(factor * self.side)))
        assert self.share is not None
        return replace(self, share=min(1.0, factor**2 * self.share))

    def at(self, indices: Tensor) -> Patch:
        """Return the patch of these images, with their random places."""
        if self.position != "random" or self.places is not None:
            return self
        places = []
        for source in generators(self.seed, "patch", self.trial, indices=indices.tolist()):
            down, right = torch.rand(2, generator=source).tolist()
            places.append((down, right))
        return replace(self, places=tuple(places))

    def mask(self, images: Tensor) -> Tensor:
        """Return which pixels are in the patch, `(N, 1, H, W)`."""
        height, width = images.shape[2:]
        side = self._side(height, width)
        corners = self._corners(len(images), height, width, side).to(images.device)  # (N, 2)
        rows = torch.arange(height, device=images.device) - corners[:, :1]  # (N, H)
        columns = torch.arange(width, device=images.device) - corners[:, 1:]  # (N, W)
        in_rows = (rows >= 0) & (rows < side)
        in_columns = (columns >= 0) & (columns < side)
        return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]

    def _side(self, height: int, width: int) -> int:
        shorter = min(height, width)
        if self.share is not None:
            return min(max(1, round(math.sqrt(self.share * height * width))), shorter)
        assert self.side is not None
        # Twice the side, which checks of an attack ask for, may be more than there is.
        return min(self.side, shorter)

    def _corners(self, count: int, height: int, width: int, side: int) -> Tensor:
        spare = torch.tensor([height - side, width - side])
        if self.position == "center":
            return (spare // 2).expand(count, 2)
        if isinstance(self.position, list):
            corner = torch.tensor(self.position)
            if bool((corner > spare).any()):
                raise UserError(
                    f"position: a patch of {side} pixels at {self.position} is not inside images "
                    f"of {height} x {width}"
                )
            return corner.expand(count, 2)
        places = self.places
        if places is None:
            places = self.at(torch.arange(count)).places
        assert places is not None
        draws = torch.tensor(places, dtype=torch.float64).view(-1, 2)
        return (draws * (spare + 1)).long().minimum(spare)

    def _onto_ball(self, images: Tensor, center: Tensor) -> Tensor:
        inside = torch.clamp(images, min=center - self.radius, max=center + self.radius)
        return torch.where(self.mask(center), inside, center)

    def sample(self, center: Tensor, generators: Generators) -> Tensor:
        """Draw uniformly inside the patch, then clip."""
        drawn = Linf(self.radius, clip=self.clip).sample(center, generators)
        return torch.where(self.mask(center), drawn, center)

    def steepest(self, gradient: Tensor) -> Tensor:
        """Return the sign of the gradient inside the patch, and zero elsewhere."""
        return gradient.sign() * self.mask(gradient)

    def norm(self, perturbation: Tensor) -> Tensor:
        """Return the largest absolute pixel difference of each image, `(N,)`."""
        return perturbation.flatten(1).abs().amax(1)


@dataclass(frozen=True)
class PatchAttack:
    """Settings of a patch on images `(N, C, H, W)`, at one place or the worst of several.

    Args:
        attack: PGD in a `Patch`.
        positions: how many random places are tried for each image; the worst counts.
    """

    attack: PGD
    positions: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        check_count("positions", self.positions)
        region = self.attack.region
        if not isinstance(region, Patch):
            raise UserError(f"attack: expected one in a patch, got {region.name}")
        if self.positions > 1 and region.position != "random":
            raise UserError(
                f"positions: {self.positions} with the position {region.position}; expected 1, or "
                "position: random"
            )
        if self.positions > 1 and not self.attack.keeps_clean:
            raise UserError(
                f"positions: {self.positions} with keep={self.attack.keep!r}, which cannot choose "
                "among them; expected 1"
            )

    @property
    def keeps_clean(self) -> bool:
        """As the attack at each place."""
        return self.attack.keeps_clean

    def settings(self) -> Settings:
        """Return the attack's settings; each place counts as a restart."""
        settings = self.attack.settings()
        settings["restarts"] *= self.positions
        return settings

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield a candidate for each place and restart."""
        for attack in self._attacks():
            for candidate in attack.on_score(detector, images, direction, indices):
                yield candidate._replace(member="patch")

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield a candidate for each place and restart."""
        for attack in self._attacks():
            for candidate in attack.on_label(net, images, labels, indices):
                yield candidate._replace(member="patch")

    def _attacks(self) -> Iterator[PGD]:
        region = self.attack.region
        assert isinstance(region, Patch)
        for trial in range(self.positions):
            moved = replace(region, trial=region.trial + trial)
            yield replace(self.attack, region=moved, seed=self.attack.seed + trial)


@typed
def patch(  # the settings that users have
    *,
    side: int | None = None,
    share: float | None = None,
    position: Position = "random",
    radius: float | str = 1.0,
    positions: int = 1,
    steps: int = 40,
    seed: int = 0,
    **settings: Any,
) -> PatchAttack:
    """Return PGD in a square patch of each image; further settings are those of `PGD`.

    Source: Karmon et al. 2018; the patch is made for each image.

    Args:
        side: of the square in pixels; this or `share`.
        share: of the image's area, in (0, 1].
        position: "random" (keyed by sample index), "center", or `[row, column]`.
        radius: how far pixels of the patch may move, in (0, 1]; 1 leaves them free.
        positions: random places that are tried, >= 1; the worst counts.
        steps: gradient steps, >= 1.
        seed: of places and random starts.
    """
    region = Patch(Fraction(radius), side=side, share=share, position=position, seed=seed)
    pgd = configured("", PGD, region, settings={**settings, "steps": steps, "seed": seed})
    return PatchAttack(pgd, positions)
