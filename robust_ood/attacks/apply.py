"""Attacks on detectors and on classifiers: they propose candidates, the true score or margin chooses among them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.attacks.objectives import Direction
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.modes import evaluating, ordinary
from robust_ood.perturb import Objective


class ScoreAttack(Protocol):
    """Anything that proposes perturbed images against a detector: `PGD`, or a suite of attacks."""

    def on_score(self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor) -> Iterator[Tensor]:
        """Yield candidate images `(N, C, H, W)` that make `direction * score` small."""


class LabelAttack(Protocol):
    """Anything that proposes perturbed images against a classifier."""

    def on_label(self, net: nn.Module, images: Tensor, labels: Tensor, loss: str, indices: Tensor) -> Iterator[Tensor]:
        """Yield candidate images `(N, C, H, W)` that make the classifier err."""


def lower_score(detector: Detector, inliers: Tensor, attack: ScoreAttack, *, indices: Tensor | None = None) -> Tensor:
    """Return inliers perturbed so that they look out-of-distribution: the inlier attack.

    Args:
        detector: the detector under attack, attacked through everything it does.
        inliers: images `(N, C, H, W)` in [0, 1].
        attack: for instance `PGD(Linf(8/255), steps=20, restarts=2)`.
        indices: sample indices `(N,)` that key the random starts; 0..N-1 by default. Pass an image's index in its data
            set, and its result does not depend on the batch it came in.

    Returns:
        Images `(N, C, H, W)`, detached: for each, the one whose *true* score is lowest among the clean image and all that
        the attack proposed. The detector is in eval mode meanwhile; its flags and gradients are left as they were.
    """
    return _attack_score(detector, inliers, attack, 1, indices)


def raise_score(detector: Detector, outliers: Tensor, attack: ScoreAttack, *, indices: Tensor | None = None) -> Tensor:
    """Return outliers perturbed so that they look in-distribution: the outlier attack. See `lower_score`."""
    return _attack_score(detector, outliers, attack, -1, indices)


def misclassify(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: LabelAttack,
    *,
    loss: str = "cross_entropy",
    indices: Tensor | None = None,
) -> Tensor:
    """Return images perturbed so that the classifier errs.

    Args:
        net: classifier, images to logits `(N, K)`.
        images: `(N, C, H, W)` in [0, 1].
        labels: true classes `(N,)`.
        attack: settings.
        loss: what is climbed: "cross_entropy", "margin" or "dlr".
        indices: as in `lower_score`.

    Returns:
        Images `(N, C, H, W)`, detached: for each, the one with the smallest margin of the true class, the clean image
        included.
    """
    images, labels, indices = ordinary(images), ordinary(labels), _indices(images, indices)
    with evaluating(net):
        candidates = attack.on_label(net, images, labels, loss, indices)
        return worst(lambda x: losses.margin(net(x), labels), images, candidates)


def _attack_score(
    detector: Detector, images: Tensor, attack: ScoreAttack, direction: Direction, indices: Tensor | None
) -> Tensor:
    images, indices = ordinary(images), _indices(images, indices)
    with evaluating(detector):
        candidates = attack.on_score(detector, images, direction, indices)
        return worst(lambda x: direction * detector(x), images, candidates)


def _indices(images: Tensor, indices: Tensor | None) -> Tensor:
    if indices is None:
        return torch.arange(len(images))
    if indices.shape != images.shape[:1]:
        raise UserError(f"indices: shape {tuple(indices.shape)} for {len(images)} images, one index each wanted")
    return indices


def worst(value: Objective, images: Tensor, candidates: Iterator[Tensor]) -> Tensor:
    """Return, image by image, whichever of the clean image and the candidates has the smallest value."""
    with torch.no_grad():
        kept, lowest = images, value(images)
        for candidate in candidates:
            values = value(candidate)
            lower = values < lowest
            kept = torch.where(lower.view(-1, 1, 1, 1), candidate, kept)
            lowest = torch.where(lower, values, lowest)
    return kept
