"""Densities and regrets of penultimate features: Gaussian mixtures (GMM, DDU) and pNML."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.gaussians import Shrinkage, squared_lengths, whitening
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import ClassCovariances, ClassMoments
from robust_ood.detectors.logarithms import minus_log_excess
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network


class GMM(OutputsDetector):
    """The log-density of the penultimate feature under one Gaussian a class, unbounded.

    `log sum over c of pi_c N(f; mu_c, S_c)`, where pi_c is the share of class c among the training
    images. Source: Mukhoti et al. 2023 (DDU), Alg. 1, with a covariance of each class's own; GMM in
    pytorch-ood. The authors' code leaves the shares out, which is the same for classes of equal
    size, and divides covariances by one image less. Lee et al. 2018 and OpenOOD's `gmm` share one
    covariance (`covariance="tied"`); OpenOOD's components are found by EM without labels, and not
    normalised.

    Fitting holds one `(D, D)` matrix a class, whatever the number of images.

    Args:
        net: classifier.
        covariance: "class" or "tied".
        shrinkage: how far covariances are shrunk towards a multiple of the identity; see
            `gaussians.whitening`. DDU and pytorch-ood add a small constant instead.
    """

    needs = "features"

    @typed
    def __init__(
        self,
        net: Network,
        covariance: Literal["class", "tied"] = "class",
        shrinkage: Shrinkage = "auto",
    ) -> None:
        super().__init__(net)
        if covariance not in ("class", "tied"):
            raise UserError(f"covariance: expected 'class' or 'tied', got {covariance!r}")
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.declare("means", "whitening", "constants")

    def learn(self) -> Rounds:
        """Find means and covariances by one pass over labelled images."""
        classes = self.num_classes
        moments: ClassMoments | ClassCovariances = ClassMoments(classes)
        if self.covariance == "class":
            moments = ClassCovariances(classes)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return seen.out.features, seen.classes(classes)

        yield [self.reading(moments, read)]
        means = moments.means
        if isinstance(moments, ClassCovariances):
            matrices = []
            for covariance in moments.covariances():
                matrices.append(whitening(covariance, self.shrinkage))
            whitened = torch.stack(matrices)  # (K, D, D)
        else:
            whitened = whitening(moments.within, self.shrinkage)[None]  # (1, D, D)
        # log pi_c - (log |S_c| + D log 2 pi) / 2, where W whitens and |S|^-1/2 is |W|.
        log_shares = (moments.counts / moments.counts.sum()).log()
        log_volumes = torch.linalg.slogdet(whitened).logabsdet
        constants = log_shares + log_volumes - means.shape[1] / 2 * math.log(2 * math.pi)
        self.keep(means=means, whitening=whitened, constants=constants)

    def score(self, out: Outputs) -> Tensor:
        """Return the log-density of each feature."""
        features = losses.wide(out.features)
        means = self.learned("means").to(features)
        whitened = self.learned("whitening").to(features)
        distances = []
        for number, mean in enumerate(means):
            # One class at a time, so that no (N, K, D) is held twice.
            matrix = whitened[number if len(whitened) > 1 else 0]
            distances.append(squared_lengths((features - mean) @ matrix))
        log_densities = self.learned("constants").to(features) - torch.stack(distances, 1) / 2
        return log_densities.logsumexp(1)


class PNML(OutputsDetector):
    """Minus the logarithm of the learnability regret's excess, unbounded.

    The regret is `log sum over i of p_i / (p_i + (1 - p_i) p_i^g)` with `g = k / (1 + k)` and `k =
    x' (X' X)^+ x`, where x is the feature of unit length and X has those of the training images.
    Source: Bibas et al. 2021 (single-layer pNML): the regret of a single layer, applied to the last
    one of a deep network. The published value is minus the regret over log K, in [-1, 0], which
    `published` gives. With e the sum's excess over one, the score is `-log e`: the same order, and
    no ties where the softmax is one-hot in float32.

    p is the softmax of the head on the feature of unit length, as in pytorch-ood; `normalize=False`
    takes the network's own softmax. The authors' code also appends a constant 1 to features, and
    where a feature's squared length outside the span of the training features is larger than g, it
    takes that.

    Args:
        net: classifier with a linear head.
        normalize: whether the head, too, reads features of unit length.
    """

    needs = "head"

    @typed
    def __init__(self, net: Network, *, normalize: bool = True) -> None:
        super().__init__(net)
        self.normalize = normalize
        self.declare("projector")

    def learn(self) -> Rounds:
        """Sum up products of features by one pass."""
        moments = ClassMoments(1)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            features = F.normalize(losses.wide(seen.out.features), dim=1)
            return features, seen.out.logits.new_zeros(len(features)).long()

        yield [self.reading(moments, read)]
        values, vectors = torch.linalg.eigh(moments.products)  # X' X
        kept = values > values[-1] * len(values) * torch.finfo(torch.float32).eps
        if not bool(kept.any()):
            raise UserError("loader: all features are zero; the network gives the same for each")
        self.keep(projector=vectors[:, kept] / values[kept].sqrt())  # (D, rank)

    def score(self, out: Outputs) -> Tensor:
        """Return minus the logarithm of the excess."""
        features = F.normalize(losses.wide(out.features), dim=1)
        size = squared_lengths(features @ self.learned("projector").to(features))  # k, (N,)
        logits = losses.wide(out.logits)
        if self.normalize:
            logits = losses.wide(out.head(features.to(out.head.weight.dtype)))
        return minus_log_excess(logits, size / (1 + size))

    def published_score(self, out: Outputs) -> Tensor:
        """Return minus the regret by the logarithm of the number of classes, in [-1, 0]."""
        excess = (-self.score(out)).exp()
        return -torch.log1p(excess) / math.log(out.logits.shape[1])

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class."""
        return AttackSurface((self.surrogate, self.confidence), exact=True)
