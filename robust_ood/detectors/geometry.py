"""Where a feature lies among class means, head weights and decision boundaries."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch, read_features
from robust_ood.detectors.fitting.statistics import Average, RightMeans
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network

_SMALLEST = 1e-12  # of a length that divides

Metric = Literal["inner_product", "cosine", "euclidean"]


class SHE(OutputsDetector):
    """The product of the feature and the stored pattern of its predicted class, unbounded.

    Source: Zhang et al. 2023 (simplified Hopfield energy), the inner product with the mean
    penultimate feature of the training images that are rightly predicted as that class; `metric`
    has the two others of its ablation, which OpenOOD offers, too: the cosine, and minus the
    Euclidean distance. A class of which no image is rightly predicted has the mean of all its
    images; OpenOOD's is NaN there, and pytorch-ood refuses.

    The score jumps where the predicted class changes. Attackers therefore also get the products
    with all patterns, weighed by the softmax.

    Args:
        net: classifier.
        metric: "inner_product", "cosine" or "euclidean".
    """

    needs = "features"

    @typed
    def __init__(self, net: Network, metric: Metric = "inner_product") -> None:
        super().__init__(net)
        if metric not in ("inner_product", "cosine", "euclidean"):
            raise UserError(
                f"metric: expected 'inner_product', 'cosine' or 'euclidean', got {metric!r}"
            )
        self.metric = metric
        self.declare("patterns")

    def learn(self) -> Rounds:
        """Average the features of each class by one pass over labelled images."""
        classes = self.num_classes
        means = RightMeans(classes)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return seen.out.features, means.rows(seen.out.logits, seen.classes(classes))

        yield [self.reading(means, read)]
        self.keep(patterns=means.means)

    def score(self, out: Outputs) -> Tensor:
        """Return the product with the predicted class's pattern."""
        features = losses.wide(out.features)
        pattern = self.learned("patterns").to(features)[out.logits.argmax(1)]  # (N, D)
        return self._products(features, pattern)

    def soft_score(self, out: Outputs) -> Tensor:
        """Return the product `(N,)` with the mean of all patterns, weighed by the softmax."""
        features = losses.wide(out.features)
        weights = F.softmax(losses.wide(out.logits), dim=1)  # (N, K)
        return self._products(features, weights @ self.learned("patterns").to(features))

    def attack_surface(self) -> AttackSurface:
        """Return the score, its soft form, then the log-odds of the predicted class."""
        surrogates = (self.surrogate, self.stand_in(self.soft_score), self.confidence)
        return AttackSurface(surrogates, exact=True)

    def _products(self, features: Tensor, patterns: Tensor) -> Tensor:
        if self.metric == "cosine":
            return F.cosine_similarity(features, patterns, dim=1)
        if self.metric == "euclidean":
            distance: Tensor = torch.linalg.vector_norm(features - patterns, dim=1)
            return -distance
        return (features * patterns).sum(1)


class FDBD(OutputsDetector):
    """The mean distance of the feature to the decision boundaries, by its size, >= 0.

    Source: Liu and Qin 2024 (fDBD): with y the predicted class, the mean over all other classes c
    of `|z_y - z_c| / |w_y - w_c|_2`, the distance to the hyperplane where both logits are equal,
    divided by the distance of the feature to the mean training feature. OpenOOD chooses on
    validation images between that divisor and the feature's length (`divisor="length"`).

    Args:
        net: classifier with a linear head.
        divisor: "distance" to the mean training feature, as in the paper, or "length", for which
            nothing is fitted.
    """

    needs = "head"

    @typed
    def __init__(self, net: Network, divisor: Literal["distance", "length"] = "distance") -> None:
        super().__init__(net)
        if divisor not in ("distance", "length"):
            raise UserError(f"divisor: expected 'distance' or 'length', got {divisor!r}")
        self.divisor = divisor
        if divisor == "distance":
            self.declare("mean")

    def learn(self) -> Rounds:
        """Average the features by one pass."""
        if self.divisor == "distance":
            average = Average()
            yield [self.reading(average, read_features)]
            self.keep(mean=average.mean)

    def score(self, out: Outputs) -> Tensor:
        """Return the mean distance to the boundaries by the feature's size."""
        logits = losses.wide(out.logits)
        features = losses.wide(out.features)
        weight = out.head.weight.to(features)  # (K, D)
        predicted = logits.argmax(1)  # (N,)
        with torch.no_grad():
            # (K, K); of equal weights there is no boundary.
            apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
            inverse = torch.where(apart > _SMALLEST, 1 / apart.clamp_min(_SMALLEST), 0.0)
        gaps = logits.gather(1, predicted[:, None]) - logits  # (N, K), 0 at the predicted class
        distance = (gaps * inverse[predicted]).sum(1) / (logits.shape[1] - 1)
        if self.divisor == "distance":
            features = features - self.learned("mean").to(features)
        length: Tensor = torch.linalg.vector_norm(features, dim=1)
        return distance / length.clamp_min(_SMALLEST)

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class.

        The score's gradient turns where the predicted class changes.
        """
        return AttackSurface((self.surrogate, self.confidence), exact=True)


class NCI(OutputsDetector):
    """How far the centred feature points along its class's weights, plus its L1 norm, unbounded.

    Source: Liu and Qin 2025 (neural collapse inspired): `w_y . (f - m) / |f - m|_2 + alpha |f|_1`
    with y the predicted class and m the mean training feature. As in the public codes the weights
    keep their length, so the first term is the cosine times it.

    Args:
        net: classifier with a linear head.
        alpha: weight of the norm, >= 0; 0.0001 by default in OpenOOD, 0 in pytorch-ood.
    """

    needs = "head"

    @typed
    def __init__(self, net: Network, alpha: float = 0.0001) -> None:
        super().__init__(net)
        if not alpha >= 0:
            raise UserError(f"alpha: expected a number >= 0, got {alpha}")
        self.alpha = alpha
        self.declare("mean")

    def learn(self) -> Rounds:
        """Average the features by one pass."""
        average = Average()
        yield [self.reading(average, read_features)]
        self.keep(mean=average.mean)

    def score(self, out: Outputs) -> Tensor:
        """Return the projection onto the predicted class's weights plus the weighed norm."""
        weight = out.head.weight[out.logits.argmax(1)]  # (N, D)
        return self._along(out, weight)

    def soft_score(self, out: Outputs) -> Tensor:
        """Return the score `(N,)` with the mean weights of all classes, weighed by the softmax."""
        shares = F.softmax(losses.wide(out.logits), dim=1)  # (N, K)
        return self._along(out, shares @ out.head.weight.to(shares))

    def attack_surface(self) -> AttackSurface:
        """Return the score, its soft form, then the log-odds of the predicted class."""
        surrogates = (self.surrogate, self.stand_in(self.soft_score), self.confidence)
        return AttackSurface(surrogates, exact=True)

    def _along(self, out: Outputs, weight: Tensor) -> Tensor:
        features = losses.wide(out.features)
        centered = features - self.learned("mean").to(features)
        length: Tensor = torch.linalg.vector_norm(centered, dim=1).clamp_min(_SMALLEST)
        projection = (weight.to(features) * centered).sum(1) / length
        return projection + self.alpha * features.abs().sum(1)
