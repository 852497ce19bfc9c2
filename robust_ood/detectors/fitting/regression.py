"""The logistic regression that weighs the layers of a Mahalanobis detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Pass, SeenBatch, Split
from robust_ood.detectors.fitting.statistics import Sample

COUNT = 1000
"""How many images of each side the weights are learned from, as in ALOE's code."""
Columns = Callable[[Tensor], Sequence[Tensor]]
"""Images to one score `(N,)` a layer."""
_SIDES: tuple[Split, Split] = ("inliers", "outliers")


class LayerRegression:
    """Learns the weights and the bias of a Mahalanobis detector's layers.

    It regresses "in-distribution or not" on the layers' scores. Source: ALOE Eq. 9 (Lee et al.
    2018). Their codes cross-validate the strength of the penalty on raw scores. The scales of those
    differ by orders of magnitude between layers, so here scores are standardised and the penalty is
    scikit-learn's default; the weights that are stored are those of the raw scores.

    A first pass chooses `COUNT` images of each side, whatever the order and the processes that they
    come in; the scores of these alone are computed in a second.

    Args:
        module: the detector, on whose device the scores are computed.
        layers: how many layers it reads.
        columns: images to one score `(N,)` a layer.
    """

    def __init__(self, module: nn.Module, layers: int, columns: Columns) -> None:
        self.module = module
        self.layers = layers
        self.columns = columns
        self.chosen: dict[Split, Sample] = {side: Sample(COUNT) for side in _SIDES}
        self.scores: dict[Split, Sample] = {side: Sample(COUNT) for side in _SIDES}

    def choose(self) -> list[Pass]:
        """Return the passes that choose images of both sides."""

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            keys = image_keys(seen.images)
            return keys[:, None], keys

        passes = []
        for side in _SIDES:
            statistic = self.chosen[side]
            passes.append(Pass(statistic, read, self.module, forward=False, split=side))
        return passes

    @property
    def has_both(self) -> bool:
        """Whether images of both sides have been chosen."""
        return all(self.chosen[side].keys.numel() for side in _SIDES)

    def collect(self) -> list[Pass]:
        """Return the passes that compute the scores of the chosen images."""
        passes = []
        for side in _SIDES:
            read = self._reader(side)
            statistic = self.scores[side]
            passes.append(Pass(statistic, read, self.module, forward=False, split=side))
        return passes

    def _reader(self, side: Split) -> Callable[[SeenBatch], tuple[Tensor, Tensor]]:
        last = int(self.chosen[side].keys.max())  # the images with the smallest keys are chosen

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            keys = image_keys(seen.images)
            chosen = keys <= last
            images = seen.images[chosen]
            columns: Sequence[Tensor] = [images.new_empty(0)] * self.layers
            if len(images):
                columns = self.columns(images)
            return torch.stack(list(columns), dim=1), keys[chosen]

        return read

    def solve(self) -> dict[str, Tensor]:
        """Return `weights` `(L,)` and `bias` `(1,)` of the raw scores, float64."""
        from sklearn.linear_model import LogisticRegression  # a second of start-up that few need

        inliers, outliers = (self.scores[side].rows.cpu().double() for side in _SIDES)
        scores = torch.cat([inliers, outliers])  # (N, L)
        mean = scores.mean(0)
        std = scores.std(0).clamp_min(1e-12)
        target = torch.cat([torch.ones(len(inliers)), torch.zeros(len(outliers))])
        # The default tolerance stops a thousandth away from the weights.
        model = LogisticRegression(tol=1e-10, max_iter=10_000)
        model.fit(((scores - mean) / std).numpy(), target.numpy())
        weights = torch.from_numpy(model.coef_[0].copy()) / std
        bias = torch.tensor([float(model.intercept_[0])]) - weights @ mean
        return {"weights": weights, "bias": bias}
