"""Attacks at another resolution than the detector's, through a differentiable resize."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import check_fields
from robust_ood.attacks.apply import Attack, Candidate, Settings
from robust_ood.attacks.objectives import Direction
from robust_ood.attacks.quantised import suite_of
from robust_ood.detectors import AttackSurface, Detector, Surrogate, surface_of
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of


@dataclass(frozen=True)
class LowResolution:
    """Settings of an attack whose perturbation is made at a lower resolution and enlarged.

    Source: Fort 2022, Sec. 3.4: gradients of score(resize(x)) with respect to small images x.
    Resizing is linear, so for images that were enlarged from that size this is the same; others
    keep their own detail. Enlarging never exceeds an Linf radius; it would exceed an L2 radius.
    Images are `(N, C, H, W)` at the full resolution.

    Args:
        attack: what is done at the low resolution.
        size: height and width of the perturbation.
    """

    attack: Attack
    size: int

    def __post_init__(self) -> None:
        check_fields(self)
        if self.size < 1:
            raise UserError(f"size: {self.size} is not a number of pixels >= 1")
        if suite_of(self.attack) is not None:
            # Its members take parts of a batch, which a view of it cannot follow.
            raise UserError(
                "attack: a suite given; put LowResolution around each of its members instead"
            )
        if self.attack.settings()["norm"] != "Linf":
            raise UserError(
                "attack: an L2 perturbation grows when it is enlarged, beyond its radius; expected "
                "one in Linf"
            )

    @property
    def keeps_clean(self) -> bool:
        """As the attack at the low resolution."""
        return self.attack.keeps_clean

    def settings(self) -> Settings:
        """Return the settings of the attack at the low resolution."""
        return self.attack.settings()

    def at_low_resolution(self, detector: Detector, images: Tensor) -> tuple[Detector, Tensor]:
        """Return the detector as one of small images, and the small images `(N, C, size, size)`.

        Such a detector reads those images, whole, and no others.
        """
        view = self._view(images)
        return _EnlargedDetector(detector, view), view.small

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield the enlarged perturbations' candidates."""
        view = self._view(images)
        enlarged = _EnlargedDetector(detector, view)
        for candidate in self.attack.on_score(enlarged, view.small, direction, indices):
            yield candidate._replace(images=view(candidate.images))

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield the enlarged perturbations' candidates."""
        view = self._view(images)
        enlarged = _EnlargedNetwork(net, view)
        for candidate in self.attack.on_label(enlarged, view.small, labels, indices):
            yield candidate._replace(images=view(candidate.images))

    def _view(self, images: Tensor) -> _Enlargement:
        small = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return _Enlargement(images, small.clamp(0, 1))


@dataclass(frozen=True)
class _Enlargement:
    """Small images to full ones: the small image's change, enlarged, is added to the full one."""

    full: Tensor
    small: Tensor

    def __call__(self, small: Tensor) -> Tensor:
        change = F.interpolate(small - self.small, size=self.full.shape[2:], mode="bilinear")
        return (self.full + change).clamp(0, 1)


class _EnlargedNetwork(nn.Module):
    """A network of full-size images as a network of small ones."""

    def __init__(self, net: nn.Module, view: _Enlargement) -> None:
        super().__init__()
        self.net = net
        self.view = view

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = logits_of(self.net(self.view(images)))
        return logits


class _EnlargedDetector(Detector):
    """A detector of full-size images as a detector of small ones."""

    def __init__(self, detector: Detector, view: _Enlargement) -> None:
        super().__init__()
        self.detector = detector
        self.view = view
        self._networks = tuple(_EnlargedNetwork(net, view) for net in detector.networks)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.detector(self.view(images))
        return scores

    def surrogate(self, images: Tensor) -> Tensor:
        return self.detector.surrogate(self.view(images))

    def attack_surface(self) -> AttackSurface:
        return surface_of(self.detector).map(lambda surrogate: partial(self._enlarged, surrogate))

    def _enlarged(self, surrogate: Surrogate, images: Tensor) -> Tensor:
        return surrogate(self.view(images))

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return self._networks
