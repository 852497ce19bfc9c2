"""A detector and a few images, which the sanity checks attack in several ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robust_ood.attacks import PGD, ScoreAttack, Square, attack_score
from robust_ood.detectors import AttackSurface, Detector, surface_of
from robust_ood.metrics import auroc
from robust_ood.modes import differentiating, ordinary


class _BothSides(Detector):
    """A detector with the scores of outliers, which come last, negated.

    So one attack that lowers its score attacks both sides.
    """

    signs: Tensor

    def __init__(self, detector: Detector, inliers: int, outliers: int) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("signs", torch.tensor([1.0] * inliers + [-1.0] * outliers))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.signs * self.detector(images)
        return scores

    def attack_surface(self) -> AttackSurface:
        return surface_of(self.detector).map(lambda surrogate: partial(self._signed, surrogate))

    def _signed(self, surrogate: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return self.signs * surrogate(images)


@dataclass
class Probe:
    """The detector and a few images, with what several checks ask of them."""

    detector: Detector
    inliers: Tensor
    outliers: Tensor

    def __post_init__(self) -> None:
        self.images = torch.cat([self.inliers, self.outliers])
        self._aurocs: dict[PGD | Square, float] = {}

    def scores(self) -> Tensor:
        """Return the scores of all images, inliers first."""
        with torch.no_grad():
            scores: Tensor = self.detector(self.images)
        return scores

    def auroc(self, scores: Tensor) -> float:
        """Return the AUROC of the scores of all images, inliers first."""
        return auroc(scores[: len(self.inliers)], scores[len(self.inliers) :])

    def attacked(self, attack: ScoreAttack) -> float:
        """Return the AUROC under any attack on both sides."""
        low = attack_score(self.detector, self.inliers, attack, 1).values
        high = attack_score(self.detector, self.outliers, attack, -1).values
        return auroc(low, high)

    def probed(self, attack: PGD | Square) -> float:
        """Return the AUROC under an attack on both sides in one batch; each is run once."""
        if attack not in self._aurocs:
            both = _BothSides(self.detector, len(self.inliers), len(self.outliers))
            both = both.to(self.images.device)
            indices = torch.cat([torch.arange(len(self.inliers)), torch.arange(len(self.outliers))])
            attacked = attack_score(both, self.images, attack, 1, indices=indices)
            self._aurocs[attack] = self.auroc(both.signs * attacked.values)
        return self._aurocs[attack]

    def gradients(self) -> Tensor:
        """Return the surrogate's input gradients at all images."""
        with differentiating():
            leaf = self.images.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self.detector.surrogate(leaf).sum(), leaf)
        return ordinary(gradient)

    def differentiable(self) -> bool:
        """Return whether the surrogate depends on the images, and not on its weights alone."""
        with differentiating():
            leaf = self.inliers[:1].clone().requires_grad_()
            values = self.detector.surrogate(leaf)
            if not values.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
        return gradient is not None
