"""The logistic regression that weighs the layers of a Mahalanobis detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robust_ood.detectors.fingerprints import fingerprints
from robust_ood.detectors.fitting import Pass, Seen, Source
from robust_ood.detectors.statistics import Sample

if TYPE_CHECKING:
    from robust_ood.detectors.mahalanobis import Mahalanobis

COUNT = 1000
"""How many images of each side the weights are learned from, as in ALOE's code."""
Columns = Callable[[Tensor], Sequence[Tensor]]
"""Images to one score `(N,)` a layer."""
_SIDES: tuple[Source, Source] = ("inliers", "outliers")


class LayerRegression:
    """Regresses "in-distribution or not" on the layers' scores: weights and bias of a Mahalanobis
    detector.

    Source: ALOE Eq. 9 (Lee et al. 2018). Their codes cross-validate the strength of the penalty on
    raw scores. The scales of those differ by orders of magnitude between layers, so here scores are
    standardised and the penalty is scikit-learn's default; the weights that are stored are those of
    the raw scores.

    A first pass chooses `COUNT` images of each side, whatever the order and the processes that they
    come in; the scores of these alone are computed in a second.

    Args:
        detector: whose weights are learned.
        columns: images to one score `(N,)` a layer.
    """

    def __init__(self, detector: Mahalanobis, columns: Columns) -> None:
        self.detector, self.columns = detector, columns
        self.chosen: dict[Source, Sample] = {side: Sample(COUNT) for side in _SIDES}
        self.scores: dict[Source, Sample] = {side: Sample(COUNT) for side in _SIDES}

    def choose(self) -> list[Pass]:
        """Return the passes that choose images of both sides."""

        def read(seen: Seen) -> tuple[Tensor, Tensor]:
            keys = fingerprints(seen.images)
            return keys[:, None], keys

        return [
            Pass(self.chosen[side], read, self.detector, forward=False, source=side)
            for side in _SIDES
        ]

    @property
    def has_both(self) -> bool:
        """Whether images of both sides have been chosen."""
        return all(self.chosen[side].keys.numel() for side in _SIDES)

    def collect(self) -> list[Pass]:
        """Return the passes that compute the scores of the chosen images."""
        return [
            Pass(self.scores[side], self._reader(side), self.detector, forward=False, source=side)
            for side in _SIDES
        ]

    def _reader(self, side: Source) -> Callable[[Seen], tuple[Tensor, Tensor]]:
        last = int(self.chosen[side].keys.max())  # the images with the smallest keys are chosen

        def read(seen: Seen) -> tuple[Tensor, Tensor]:
            keys = fingerprints(seen.images)
            wanted = keys <= last
            images = seen.images[wanted]
            scores = (
                self.columns(images)
                if len(images)
                else [images.new_empty(0)] * len(self.detector.read)
            )
            return torch.stack(list(scores), dim=1), keys[wanted]

        return read

    def solve(self) -> dict[str, Tensor]:
        """Return `weights` `(L,)` and `bias` `(1,)` of the raw scores, float64."""
        from sklearn.linear_model import LogisticRegression  # a second of start-up that few need

        known, unknown = (self.scores[side].rows.cpu().double() for side in _SIDES)
        scores = torch.cat([known, unknown])  # (N, L)
        mean, std = scores.mean(0), scores.std(0).clamp_min(1e-12)
        target = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))])
        # The default tolerance stops a thousandth away from the weights.
        model = LogisticRegression(tol=1e-10, max_iter=10_000).fit(
            ((scores - mean) / std).numpy(), target.numpy()
        )
        weights = torch.from_numpy(model.coef_[0].copy()) / std
        return {
            "weights": weights,
            "bias": torch.tensor([float(model.intercept_[0])]) - weights @ mean,
        }
