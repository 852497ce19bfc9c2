"""Attacks whose images survive 8-bit files: every pixel is one of 256 levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from robust_ood.arguments import check_fields
from robust_ood.attacks.apply import (
    Attack,
    Candidate,
    Settings,
    StopsEarly,
    region_of_attack,
)
from robust_ood.attacks.objectives import Direction
from robust_ood.attacks.suite import Suite
from robust_ood.detectors import AttackSurface, Detector, Surrogate, surface_of
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.regions import NORMS, Linf, region_of

LEVELS = 255
_ROUNDING = 1e-6  # of a radius or a pixel, what float32 leaves of whole levels


@dataclass(frozen=True)
class Quantised:
    """Settings of an attack on images `(N, C, H, W)` that are saved with 8 bits a pixel.

    What an attack changes by less than a level is lost in a PNG file. What this gives lies on the
    levels k / 255, within the radius and in [0, 1]; the true score chooses after rounding. The
    attack is run twice: as it is, and against a detector that rounds what it is given, with
    gradients that pass the rounding as if it were none (straight-through, Bengio et al. 2013).
    Neither is always the stronger.

    Args:
        attack: any attack within an Linf, L2 or L1 radius, or a suite.

    Raises:
        UserError: a radius below 1/255, within which there is no other 8-bit image.
    """

    attack: Attack

    def __post_init__(self) -> None:
        check_fields(self)
        settings = self.attack.settings()
        region_of_attack(self.attack)
        if settings["radius"] < (1 - _ROUNDING) / LEVELS:
            raise UserError(
                f"quantise: no other 8-bit image is within the radius {settings['radius']:g}; "
                "expected one of at least 1/255"
            )

    @property
    def keeps_clean(self) -> bool:
        """As the attack that is rounded."""
        return self.attack.keeps_clean

    @property
    def stops_early(self) -> bool:
        """As the attack that is rounded."""
        return isinstance(self.attack, StopsEarly) and self.attack.stops_early

    def until(self, enough: float) -> Quantised:
        """Return the attack that leaves alone images whose score is beyond `enough`."""
        if not isinstance(self.attack, StopsEarly):
            return self
        return replace(self, attack=self.attack.until(enough))

    def settings(self) -> Settings:
        """Return the settings of the attack that is rounded; its two runs count as restarts."""
        settings = self.attack.settings()
        settings["restarts"] *= 2
        return settings

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield rounded candidates.

        Raises: `UserError` for clean images that are between two levels.
        """
        _require_levels(images)
        for subject in (detector, _RoundingDetector(detector)):
            for candidate in self.attack.on_score(subject, images, direction, indices):
                yield self._rounded(candidate, images)

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield rounded candidates, as `on_score`."""
        _require_levels(images)
        for subject in (net, _RoundingNetwork(net)):
            for candidate in self.attack.on_label(subject, images, labels, indices):
                yield self._rounded(candidate, images)

    def _rounded(self, candidate: Candidate, images: Tensor) -> Candidate:
        clean = images if candidate.at is None else images[candidate.at]
        settings = self.attack.settings()
        norm = settings["norm"]
        if norm not in NORMS:  # a patch, whose radius holds for each pixel
            norm = Linf.name
        moved = within(candidate.images, clean, norm, settings["radius"])
        return candidate._replace(images=moved)


def suite_of(attack: Any) -> Suite | None:
    """Return the suite that an attack is, or whose images it rounds; None for other attacks."""
    if isinstance(attack, Quantised):
        attack = attack.attack
    return attack if isinstance(attack, Suite) else None


def within(images: Tensor, clean: Tensor, norm: str, radius: float) -> Tensor:
    """Return images on the levels, within the radius of clean ones that are on them, too.

    The nearest level where that is within the radius; else the next one towards the clean image:
    pixel by pixel in Linf, whose radius holds for each pixel, otherwise in the whole image.
    """
    steps = (images - clean) * LEVELS
    nearest = steps.round()
    towards = steps.trunc()  # shorter than `steps` in every pixel, and so in every norm
    region = region_of(norm, radius)
    limit = radius * (1 + _ROUNDING) + _ROUNDING
    if norm == "Linf":
        is_inside = nearest.abs() <= limit * LEVELS
    else:
        lengths = region.norm(nearest / LEVELS)
        is_inside = (lengths <= limit).view(-1, *[1] * (images.dim() - 1))
    levels = (clean * LEVELS).round() + nearest.where(is_inside, towards)
    return levels.clamp(0, LEVELS) / LEVELS


def _require_levels(images: Tensor) -> None:
    levels = images * LEVELS
    if bool(((levels - levels.round()).abs() > 1e-3).any()):
        raise UserError(
            "quantise: the clean images have more than 8 bits a pixel; expected multiples of 1/255"
        )


def _straight_through(images: Tensor) -> Tensor:
    """Return images on the nearest levels, with the gradient of images that are not rounded."""
    levels = (images.detach() * LEVELS).round().clamp(0, LEVELS) / LEVELS
    return images + (levels - images.detach())


class _RoundingNetwork(nn.Module):
    """A network that rounds the images that it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = logits_of(self.net(_straight_through(images)))
        return logits


class _RoundingDetector(Detector):
    """A detector that rounds the images that it is given."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self._networks = tuple(_RoundingNetwork(net) for net in detector.networks)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.detector(_straight_through(images))
        return scores

    def surrogate(self, images: Tensor) -> Tensor:
        return self.detector.surrogate(_straight_through(images))

    def attack_surface(self) -> AttackSurface:
        return surface_of(self.detector).map(lambda surrogate: partial(_of_rounded, surrogate))

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return self._networks


def _of_rounded(surrogate: Surrogate, images: Tensor) -> Tensor:
    return surrogate(_straight_through(images))
