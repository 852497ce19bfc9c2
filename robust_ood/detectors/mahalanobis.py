"""Mahalanobis distances of features: of one layer or several, plain or relative, with or without
input noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import (
    OutputsDetector,
    Wrapper,
    full_precision,
    widened,
)
from robust_ood.detectors.fitting.gaussians import (
    Shrinkage,
    nearest_center,
    squared_lengths,
    whitening,
)
from robust_ood.detectors.fitting.passes import Rounds, Split
from robust_ood.detectors.fitting.regression import Columns, LayerRegression
from robust_ood.detectors.fitting.statistics import ClassMoments
from robust_ood.detectors.layers import PENULTIMATE, Layers, named, vectors
from robust_ood.errors import UserError
from robust_ood.models import Outputs, outputs
from robust_ood.modes import ordinary
from robust_ood.perturb import minimize
from robust_ood.regions import Fraction, Unbounded


class Mahalanobis(OutputsDetector):
    """Minus the squared Mahalanobis distance to the nearest class mean, `max over c of -(f - mu_c)'
    S^-1 (f - mu_c)`.

    Source: Lee et al. 2018; ALOE Eq. 8; Fort Eq. 3-4. S is the covariance around the class means,
    shared by the classes and divided by the number of images. The public codes of Lee et al. and
    ALOE halve the distance (`reference`). With several layers, the score is `sum over layers of
    weight M_layer + bias`: the log-odds of ALOE Eq. 9, which order images as its probability does
    and do not saturate. Weights and bias are learned where `fit` gets outliers; otherwise all
    layers count alike. One layer's score is <= 0, log-odds are unbounded. `LayerNoise` around it
    gives that paper's input noise.

    Args:
        net: classifier, images to logits.
        layers: "penultimate" for the head's input, the name of a submodule, or several of either;
            feature maps are averaged over their pixels. "all" means the layers that the network
            itself names.
        shrinkage: how far covariances are shrunk towards a multiple of the identity; see
            `gaussians.whitening`.
        reference: halve the distances, as the public codes do. The order of images is the same.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Layers = PENULTIMATE,
        shrinkage: Shrinkage = "auto",
        *,
        reference: bool = False,
    ) -> None:
        names = named(net, layers)
        super().__init__(net, tuple(name for name in names if name != PENULTIMATE))
        self.read, self.shrinkage, self.reference = names, shrinkage, reference
        for place in range(len(self.read)):
            self.declare(f"origin{place}", f"whitening{place}", f"centers{place}")
        self.declare("weights", "bias")

    @property
    def learns_from(self) -> Mapping[Split, str]:
        """Auxiliary outliers, for the weights of several layers."""
        return {"outliers": "its layers all count alike"} if len(self.read) > 1 else {}

    def learn(self) -> Rounds:
        """Find class means and the tied covariance of each layer, then the layers' weights where
        there are outliers.
        """
        yield from self.learn_with(self._layer_scores)

    def learn_with(self, columns: Columns) -> Rounds:
        """Do what `learn` does; `columns` gives the scores `(N,)` of the layers that the weights
        are for.
        """
        moments = [ClassMoments(self.num_classes) for _ in self.read]

        def reader(layer: str) -> Any:
            return lambda seen: (vectors(seen.out, layer), seen.classes(self.num_classes))

        regression = LayerRegression(self, len(self.read), columns)
        choosing = regression.choose() if len(self.read) > 1 else []
        yield [
            *(
                self.reading(moment, reader(layer))
                for moment, layer in zip(moments, self.read, strict=True)
            ),
            *choosing,
        ]
        for place, moment in enumerate(moments):
            self._keep_layer(place, moment)
        self.keep(weights=torch.ones(len(self.read)), bias=torch.zeros(1))
        if regression.has_both:
            yield regression.collect()
            self.keep(**regression.solve())

    def _keep_layer(self, place: int, moments: ClassMoments) -> None:
        matrix = whitening(moments.within, self.shrinkage)
        kept = {
            "origin": moments.mean,
            "whitening": matrix,
            "centers": (moments.means - moments.mean) @ matrix,
        }
        self.keep(**{f"{name}{place}": value for name, value in kept.items()})

    def layer_score(self, out: Outputs, place: int) -> Tensor:
        """Return the score `(N,)` of one layer alone, ALOE Eq. 8, by its place in `layers`."""
        features = losses.wide(vectors(out, self.read[place]))
        origin, matrix, centers = (
            self.learned(f"{name}{place}") for name in ("origin", "whitening", "centers")
        )
        points = (features - origin.to(features)) @ matrix.to(features)
        return -nearest_center(points, centers.to(features)) * (0.5 if self.reference else 1)

    def score(self, out: Outputs) -> Tensor:
        """Return the weighted sum of the layers' scores."""
        return self.weigh([self.layer_score(out, place) for place in range(len(self.read))])

    def weigh(self, scores: Sequence[Tensor]) -> Tensor:
        """Return the weighted sum `(N,)` of one score `(N,)` a layer, plus the bias."""
        stacked = torch.stack(list(scores), dim=1)  # (N, L)
        return stacked @ self.learned("weights").to(stacked) + self.learned("bias").to(stacked)

    def _layer_scores(self, images: Tensor) -> list[Tensor]:
        out = widened(outputs(self.net, images, self.layers))
        with full_precision(images):
            return [self.layer_score(out, place) for place in range(len(self.read))]


class RelativeMahalanobis(OutputsDetector):
    """Minus the class-conditional distance relative to the one to all classes together, `-min over
    k of MD_k - MD_0`.

    Unbounded. Source: Ren et al. 2021; Fort Eq. 5. Both covariances are divided by the number of
    images (pytorch-ood 0.4 does not divide, which scales the scores).

    Args:
        net: classifier, images to logits.
        layers: "penultimate", or the name of a submodule, whose maps are averaged over their
            pixels.
        shrinkage: as in `Mahalanobis`, for both covariances.
    """

    def __init__(
        self, net: nn.Module, layers: str = PENULTIMATE, shrinkage: Shrinkage = "auto"
    ) -> None:
        names = named(net, layers)
        if len(names) > 1:
            raise UserError(
                f"layers: {layers!r} names {len(names)} layers; the relative distance reads one"
            )
        super().__init__(net, () if names[0] == PENULTIMATE else names)
        self.read, self.shrinkage = names[0], shrinkage
        self.declare("origin", "whitening", "centers", "background")

    def learn(self) -> Rounds:
        """Find class means and both covariances, by one pass over labelled images."""
        moments = ClassMoments(self.num_classes)
        yield [
            self.reading(
                moments, lambda seen: (vectors(seen.out, self.read), seen.classes(self.num_classes))
            )
        ]
        matrix = whitening(moments.within, self.shrinkage)
        self.keep(
            origin=moments.mean,
            whitening=matrix,
            centers=(moments.means - moments.mean) @ matrix,
            background=whitening(moments.overall, self.shrinkage),
        )

    def score(self, out: Outputs) -> Tensor:
        """Return minus the smallest relative distance."""
        features = losses.wide(vectors(out, self.read))
        origin, matrix, centers, background = (
            self.learned(name).to(features)
            for name in ("origin", "whitening", "centers", "background")
        )
        centered = features - origin
        return squared_lengths(centered @ background) - nearest_center(centered @ matrix, centers)


class LayerNoise(Wrapper):
    """A Mahalanobis detector that reads each layer after a step that raises that layer's score.

    Source: ALOE, between Eq. 8 and 9 (Lee et al. 2018): `x + magnitude sign(grad M_layer(x))`, one
    moved image a layer, not clipped. For one layer it is `InputNoise`. The published attack on this
    detector left the step out; the surrogate here goes through it with the movement held constant.

    Args:
        detector: a `Mahalanobis` of any layers.
        magnitude: size of the step in pixel fractions, >= 0; 0 to 0.004 in ALOE's search
            (`MAGNITUDES`).
        clip: whether moved images are clipped to [0, 1].
    """

    detector: Mahalanobis

    def __init__(
        self, detector: Mahalanobis, magnitude: float | str, *, clip: bool = False
    ) -> None:
        if not isinstance(detector, Mahalanobis):
            raise UserError(
                f"LayerNoise: wraps a Mahalanobis detector, not {type(detector).__name__}; use InputNoise"
            )
        super().__init__(detector)
        self.magnitude, self.region = float(Fraction(magnitude, "magnitude")), Unbounded(clip=clip)
        if self.magnitude < 0:
            raise UserError(f"magnitude: {magnitude} is negative")

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted sum `(N,)` of the layers' scores, each at its own moved images."""
        scores = self._layer_scores(images)
        with full_precision(images):
            return self.detector.weigh(scores)

    def learn(self) -> Rounds:
        """Fit the wrapped detector; its layers' weights from the scores at moved images."""
        yield from self.detector.learn_with(self._layer_scores)

    def attack_surface(self) -> AttackSurface:
        """Return its own stand-in, which has the score's value, then the score without noise."""
        wrapped = self.detector.surrogate
        return AttackSurface((self.surrogate, wrapped), exact=True, unmoved=(wrapped,))

    def _layer_scores(self, images: Tensor) -> list[Tensor]:
        return [self._layer_score(images, place) for place in range(len(self.detector.read))]

    def _layer_score(self, images: Tensor, place: int) -> Tensor:
        def score(x: Tensor) -> Tensor:
            out = widened(outputs(self.detector.net, x, self.detector.layers))
            with full_precision(x):
                return self.detector.layer_score(out, place)

        if self.magnitude == 0:
            return score(images)
        up = minimize(
            lambda x: -score(x), images, self.region, steps=1, step_size=self.magnitude, keep="last"
        )
        return score(images + (up.images - ordinary(images)))


MAGNITUDES = tuple(0.0002 * step for step in range(21))
"""The 21 step sizes between which ALOE's code chooses, in pixel fractions."""
