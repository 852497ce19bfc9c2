"""Mahalanobis distances of features: of one or more layers, plain, relative or with input noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import (
    OutputsDetector,
    full_precision,
    widened,
)
from robust_ood.detectors.fitting.gaussians import (
    Shrinkage,
    nearest_center,
    squared_lengths,
    whitening,
)
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch, Split
from robust_ood.detectors.fitting.regression import Columns, LayerRegression
from robust_ood.detectors.fitting.statistics import ClassMoments
from robust_ood.detectors.layers import PENULTIMATE, Layers, named, vectors
from robust_ood.detectors.wrapper import Wrapper
from robust_ood.errors import UserError
from robust_ood.models import Outputs, outputs
from robust_ood.models.heads import require
from robust_ood.models.wrap import Network
from robust_ood.modes import ordinary
from robust_ood.perturb import minimize
from robust_ood.regions import Fraction, Unbounded


class Mahalanobis(OutputsDetector):
    """Minus the squared Mahalanobis distance to the nearest class mean, <= 0 for one layer.

    Source: Lee et al. 2018; ALOE Eq. 8; Fort Eq. 3-4: `max over c of -(f - mu_c)' S^-1 (f - mu_c)`.
    S is the covariance around the class means, shared by the classes and divided by the number of
    images. The public codes of Lee et al. and ALOE halve the distance (`reference`).

    With several layers, the score is `sum over layers of weight M_layer + bias`: the log-odds of
    ALOE Eq. 9, which order images as its probability does, do not saturate and are unbounded.
    Weights and bias are learned where `fit` gets outliers; otherwise all layers count alike. A
    `LayerNoise` around the detector adds that paper's input noise.

    Args:
        net: classifier, images to logits.
        layers: "penultimate" for the head's input, the name of a submodule, or several of either;
            feature maps are averaged over their pixels. "all" means the layers that the network
            itself names.
        shrinkage: how far covariances are shrunk towards a multiple of the identity; see
            `gaussians.whitening`.
        reference: halve the distances, as the public codes do. The order of images is the same.
    """

    @typed
    def __init__(
        self,
        net: Network,
        layers: Layers = PENULTIMATE,
        shrinkage: Shrinkage = "auto",
        *,
        reference: bool = False,
    ) -> None:
        names = named(net, layers)
        super().__init__(net, tuple(name for name in names if name != PENULTIMATE))
        if PENULTIMATE in names:
            require(self.net, "features", type(self).__name__)
        self.read = names
        self.shrinkage = shrinkage
        self.reference = reference
        # One set of buffers a layer: loading a state tells their shapes.
        for place in range(len(self.read)):
            self.declare(f"origin{place}", f"whitening{place}", f"centers{place}")
        self.declare("weights", "bias")

    @property
    def learns_from(self) -> Mapping[Split, str]:
        """Auxiliary outliers, for the weights of several layers."""
        if len(self.read) > 1:
            return {"outliers": "its layers all count alike"}
        return {}

    def learn(self) -> Rounds:
        """Find each layer's class means and tied covariance, then weights from any outliers."""
        yield from self.learn_with(self._layer_scores)

    def learn_with(self, columns: Columns) -> Rounds:
        """Learn as `learn` does, with weights for other scores of the layers.

        Args:
            columns: images to one score `(N,)` a layer; the weights are for these.
        """
        moments = [ClassMoments(self.num_classes) for _ in self.read]
        passes = []
        for layer, layer_moments in zip(self.read, moments, strict=True):
            passes.append(self.reading(layer_moments, self._reader(layer)))
        # The images for the weights are chosen in the same pass; their scores need its statistics.
        regression = LayerRegression(self, len(self.read), columns)
        if len(self.read) > 1:
            passes += regression.choose()
        yield passes
        for place, layer_moments in enumerate(moments):
            self._keep_layer(place, layer_moments)
        # What counts without outliers.
        self.keep(weights=torch.ones(len(self.read)), bias=torch.zeros(1))
        if regression.has_both:
            yield regression.collect()
            self.keep(**regression.solve())

    def _reader(self, layer: str) -> Callable[[SeenBatch], tuple[Tensor, Tensor]]:
        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return vectors(seen.out, layer), seen.classes(self.num_classes)

        return read

    def _keep_layer(self, place: int, moments: ClassMoments) -> None:
        matrix = whitening(moments.within, self.shrinkage)
        # Centred before whitening: far from the origin, float32 would lose the distances' digits.
        centers = (moments.means - moments.mean) @ matrix  # (K, D)
        self.keep(
            **{
                f"origin{place}": moments.mean,
                f"whitening{place}": matrix,
                f"centers{place}": centers,
            }
        )

    def layer_score(self, out: Outputs, place: int) -> Tensor:
        """Return the score `(N,)` of one layer alone, ALOE Eq. 8.

        Args:
            out: forward pass.
            place: the layer's index in `layers`.
        """
        features = losses.wide(vectors(out, self.read[place]))  # (N, D)
        origin = self.learned(f"origin{place}").to(features)
        matrix = self.learned(f"whitening{place}").to(features)
        centers = self.learned(f"centers{place}").to(features)
        distances = nearest_center((features - origin) @ matrix, centers)
        if self.reference:
            distances = distances * 0.5
        return -distances

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
    """Minus the class-conditional distance relative to that to all classes together, unbounded.

    Source: Ren et al. 2021; Fort Eq. 5: `-min over k of MD_k - MD_0`. Both covariances are divided
    by the number of images (pytorch-ood 0.4 does not divide, which scales the scores).

    Args:
        net: classifier, images to logits.
        layers: "penultimate", or the name of a submodule, whose maps are averaged over their
            pixels.
        shrinkage: as in `Mahalanobis`, for both covariances.
    """

    @typed
    def __init__(
        self, net: Network, layers: str = PENULTIMATE, shrinkage: Shrinkage = "auto"
    ) -> None:
        names = named(net, layers)
        if len(names) > 1:
            raise UserError(
                f"layers: expected one layer for the relative distance, got {len(names)} "
                f"({layers!r})"
            )
        super().__init__(net, tuple(name for name in names if name != PENULTIMATE))
        if PENULTIMATE in names:
            require(self.net, "features", type(self).__name__)
        self.read = names[0]
        self.shrinkage = shrinkage
        self.declare("origin", "whitening", "centers", "background")

    def learn(self) -> Rounds:
        """Find class means and both covariances, by one pass over labelled images."""
        moments = ClassMoments(self.num_classes)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return vectors(seen.out, self.read), seen.classes(self.num_classes)

        yield [self.reading(moments, read)]
        matrix = whitening(moments.within, self.shrinkage)
        self.keep(
            origin=moments.mean,
            whitening=matrix,
            centers=(moments.means - moments.mean) @ matrix,
            background=whitening(moments.overall, self.shrinkage),
        )

    def score(self, out: Outputs) -> Tensor:
        """Return minus the smallest relative distance."""
        features = losses.wide(vectors(out, self.read))  # (N, D)
        matrix = self.learned("whitening").to(features)
        centers = self.learned("centers").to(features)
        background = self.learned("background").to(features)
        centered = features - self.learned("origin").to(features)
        to_all_classes = squared_lengths(centered @ background)  # MD_0, (N,)
        to_nearest_class = nearest_center(centered @ matrix, centers)  # min over k of MD_k, (N,)
        return to_all_classes - to_nearest_class


class LayerNoise(Wrapper):
    """A Mahalanobis detector that reads each layer after a step that raises that layer's score.

    The scores are as the wrapped detector's. Source: ALOE, between Eq. 8 and 9 (Lee et al. 2018):
    `x + magnitude sign(grad M_layer(x))`, one moved image a layer, not clipped. For one layer it is
    `InputNoise`. The published attack on this detector left the step out; the surrogate here goes
    through it with the movement held constant.

    Args:
        detector: a `Mahalanobis` of any layers.
        magnitude: size of the step in pixel fractions, >= 0; 0 to 0.004 in ALOE's search
            (`MAGNITUDES`).
        clip: whether moved images are clipped to [0, 1].
    """

    detector: Mahalanobis

    @typed
    def __init__(
        self, detector: Mahalanobis, magnitude: float | str, *, clip: bool = False
    ) -> None:
        if not isinstance(detector, Mahalanobis):
            raise UserError(
                f"LayerNoise: wraps a Mahalanobis detector, not {type(detector).__name__}; "
                "use InputNoise"
            )
        super().__init__(detector)
        self.magnitude = float(Fraction(magnitude, "magnitude"))
        self.region = Unbounded(clip=clip)
        if self.magnitude < 0:
            raise UserError(f"magnitude: expected a number >= 0, got {magnitude}")

    def forward(self, images: Tensor) -> Tensor:
        """Return the weighted sum `(N,)` of the layers' scores, each at its own moved images."""
        scores = self._layer_scores(images)
        with full_precision(images):
            return self.detector.weigh(scores)

    def learn(self) -> Rounds:
        """Fit the wrapped detector; its layers' weights from the scores at moved images."""
        yield from self.detector.learn_with(self._layer_scores)

    def attack_surface(self) -> AttackSurface:
        """Return the surrogate, which has the score's value, then the score without noise."""
        # The published attack (ALOE Alg. 2) differentiates the score without noise.
        wrapped = self.detector.surrogate
        # Where bfloat16 turns the sign of a gradient, the image is moved the other way.
        return AttackSurface(
            (self.surrogate, wrapped), exact=True, unmoved=(wrapped,), needs_float32=True
        )

    def _layer_scores(self, images: Tensor) -> list[Tensor]:
        return [self._layer_score(images, place) for place in range(len(self.detector.read))]

    def _layer_score(self, images: Tensor, place: int) -> Tensor:
        def score(images: Tensor) -> Tensor:
            out = widened(outputs(self.detector.net, images, self.detector.layers))
            with full_precision(images):
                return self.detector.layer_score(out, place)

        if self.magnitude == 0:
            return score(images)
        raised = minimize(
            lambda images: -score(images),
            images,
            self.region,
            steps=1,
            step_size=self.magnitude,
            keep="last",
        )
        # Straight through: the gradient treats the movement as a constant.
        movement = raised.images - ordinary(images)
        return score(images + movement)


MAGNITUDES = tuple(0.0002 * step for step in range(21))
"""The 21 step sizes between which ALOE's code chooses, in pixel fractions."""
