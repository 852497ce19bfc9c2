"""Settings of figures that need a network: how many images, which attack, which side moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from robust_ood.arguments import check_fields
from robust_ood.attacks import PGD, LowResolution
from robust_ood.errors import UserError
from robust_ood.regions import NORMS, Region

Attacked = Literal["both", "outliers"]


@dataclass(frozen=True)
class CurveSettings:
    """Settings of `curves`: traces of one attack from the clean images, in equal steps.

    Source: Fort 2022, Sec. 3.1: `images=128, steps=30, step_size=3e-4, attacked="outliers"`.

    Args:
        images: how many of each side are attacked, >= 1.
        inliers: how many clean inliers the outliers are compared with where those alone are
            attacked; as many as `images` by default.
        steps: gradient steps, >= 1.
        step_size: length of a step, in pixel fractions; by default the radius / steps.
        radius: where the steps end; by default as far as steps of the given size go, or twice the
            largest radius of the attacks.
        norm: of the steps, "Linf" (signs of the gradient) or "L2"; by default the attack's.
        size: height and width of the perturbation where it is made at a lower resolution and
            enlarged (Fort, Sec. 3.4); the norms are those of the small perturbation.
        attacked: "both" sides, or "outliers" alone, as in the paper.

    Raises:
        UserError: a number below its least value, or `inliers` where both sides are attacked.
    """

    images: int = 32
    inliers: int | None = None
    steps: int = 10
    step_size: float | None = None
    radius: float | None = None
    norm: Literal["Linf", "L2"] | None = None
    size: int | None = None
    attacked: Attacked = "both"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("images", "inliers", "steps", "size"):
            _require_least(name, getattr(self, name))
        for name in ("step_size", "radius"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{name}: expected a number > 0, got {value}")
        if self.inliers is not None and self.attacked == "both":
            raise UserError(
                "inliers: a number of clean ones, for attacked: outliers; here both sides are "
                "attacked, and images is the number of each"
            )
        if self.size is not None and self.norm == "L2":
            raise UserError("size: a perturbation in L2 grows when it is enlarged; expected Linf")

    @property
    def most(self) -> int:
        """The largest number of images of a side."""
        return max(self.images, self.inliers or 0)

    def attack(self, region: Region) -> PGD | LowResolution:
        """Return the attack whose steps are followed.

        Args:
            region: of the evaluation's attack.
        """
        reach = self.reach(region)
        step_size = self.step_size or reach.radius / self.steps
        steps = PGD(reach, steps=self.steps, step_size=step_size, random_start=False)
        if self.size is None:
            return steps
        return LowResolution(steps, self.size)

    def reach(self, region: Region) -> Region:
        """Return the region in which the steps stay.

        Args:
            region: of the evaluation's attack.
        """
        radius = self.radius
        norm = self.norm or region.name
        if radius is None and self.step_size is not None:
            radius = self.steps * self.step_size
        if radius is None and norm != region.name:
            raise UserError(
                f"norm: {norm} needs a radius or a step_size, because the attacks are in "
                f"{region.name}"
            )
        if radius is None:
            return region.scaled(2)
        if norm not in NORMS:  # a patch, of which the settings give another reach of its pixels
            return replace(region, radius=radius)
        return NORMS[norm](radius)


@dataclass(frozen=True)
class TransferSettings:
    """Settings of `transfer`: attacks through each member of an ensemble, scored on all of them.

    Args:
        images: how many of each side, >= 1.
        attacked: "both" sides, or "outliers" alone.
    """

    images: int = 32
    attacked: Attacked = "both"

    def __post_init__(self) -> None:
        check_fields(self)
        _require_least("images", self.images)

    @property
    def most(self) -> int:
        """The largest number of images of a side."""
        return self.images


@dataclass(frozen=True)
class NoSettings:
    """Of figures that have none."""

    most = 0
    """The largest number of images of a side; they take those that there are."""


def _require_least(name: str, number: int | None) -> None:
    if number is not None and number < 1:
        raise UserError(f"{name}: expected a whole number >= 1, got {number}")
