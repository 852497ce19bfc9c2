"""Scores of a feature's relations to a bank of in-distribution features: NNGuide and Relation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import Sample
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network

_CUTOFF = 0.03
"""Relations up to it are left out of the sum, as in the public codes."""


class NNGuide(OutputsDetector):
    """The energy, times the mean of the k largest products with energy-scaled features, unbounded.

    Source: Park et al. 2023 (nearest neighbour guidance). The bank holds training features of unit
    length, each times its image's energy `logsumexp(z)`; the products are with the image's own
    feature of unit length.

    Args:
        net: classifier.
        neighbours: k, >= 1; 10 in pytorch-ood, 100 in OpenOOD.
        bank_size: how many features are kept: all of a smaller training set, otherwise a uniform
            sample of it, which does not depend on the images' order. The paper takes 1 % of
            ImageNet.
    """

    needs = "features"

    @typed
    def __init__(self, net: Network, neighbours: int = 10, bank_size: int = 50_000) -> None:
        super().__init__(net)
        if not 1 <= neighbours <= bank_size:
            raise UserError(f"neighbours: expected 1..{bank_size} (bank_size), got {neighbours}")
        self.neighbours = neighbours
        self.bank_size = bank_size
        self.declare("bank")

    def learn(self) -> Rounds:
        """Keep the scaled features of the images, or of a sample of them, by one pass."""
        sample = Sample(self.bank_size)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            features = F.normalize(losses.wide(seen.out.features), dim=1)
            energy = losses.wide(seen.out.logits).logsumexp(1)
            return features * energy[:, None], image_keys(seen.images)

        yield [self.reading(sample, read)]
        if len(sample.rows) < self.neighbours:
            raise UserError(
                f"neighbours: expected at most the number of the loader's images "
                f"({len(sample.rows)}), got {self.neighbours}"
            )
        self.keep(bank=sample.rows)

    def score(self, out: Outputs) -> Tensor:
        """Return the guided energy."""
        features = F.normalize(losses.wide(out.features), dim=1)
        products = features @ self.learned("bank").to(features).T  # (N, B)
        guidance = products.topk(self.neighbours, dim=1, sorted=False).values.mean(1)
        return guidance * losses.wide(out.logits).logsumexp(1)

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class."""
        return AttackSurface((self.surrogate, self.confidence), exact=True)


class Relation(OutputsDetector):
    """The sum of an image's relations to those of a bank of training images, >= 0.

    Source: Kim et al. 2023 (neural relation graph): the relation of two images is the positive part
    of the cosine of their features times the product of their softmaxes, `max(cos, 0) (p . q)`.
    As in the authors' code and OpenOOD, relations up to 0.03 do not count, and the others are
    raised to `power`. The sum is over the bank: that of a sample is smaller by a factor.

    Args:
        net: classifier.
        power: exponent, > 0; 1 to 8 in OpenOOD's search.
        bank_size: how many images are kept, as in `NNGuide`.
    """

    needs = "features"

    @typed
    def __init__(self, net: Network, power: float = 1.0, bank_size: int = 50_000) -> None:
        super().__init__(net)
        if not power > 0:
            raise UserError(f"power: expected a number > 0, got {power}")
        if bank_size < 1:
            raise UserError(f"bank_size: expected a whole number >= 1, got {bank_size}")
        self.power = power
        self.bank_size = bank_size
        self.declare("bank")

    def learn(self) -> Rounds:
        """Keep features and softmaxes of the images, or of a sample of them, by one pass."""
        sample = Sample(self.bank_size)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return torch.cat(_prepared(seen.out), dim=1), image_keys(seen.images)

        yield [self.reading(sample, read)]
        self.keep(bank=sample.rows)

    def score(self, out: Outputs) -> Tensor:
        """Return the sum of the relations that count."""
        relations = self._relations(out)
        counting = relations > _CUTOFF
        # Powers are of the counting ones alone: the derivative of others may be infinite at 0.
        powers = torch.where(counting, relations, 1.0).pow(self.power)
        return torch.where(counting, powers, 0.0).sum(1)

    def soft_score(self, out: Outputs) -> Tensor:
        """Return the mean of all cosines `(N,)`, weighed by products of softmaxes."""
        features, p = _prepared(out)
        bank_features, q = self._bank(features, p)
        return ((features @ bank_features.T) * (p @ q.T)).mean(1)

    def attack_surface(self) -> AttackSurface:
        """Return the score, its form without a cutoff, then the log-odds of the predicted class.

        Far from the training images, no relation counts.
        """
        surrogates = (self.surrogate, self.stand_in(self.soft_score), self.confidence)
        return AttackSurface(surrogates, exact=True)

    def _relations(self, out: Outputs) -> Tensor:
        """Return the relations `(N, B)` of each image to those of the bank."""
        features, p = _prepared(out)
        bank_features, q = self._bank(features, p)
        return (features @ bank_features.T).clamp_min(0) * (p @ q.T)

    def _bank(self, features: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features `(B, D)` and softmaxes `(B, K)` of the bank."""
        bank = self.learned("bank").to(features)
        return bank[:, : features.shape[1]], bank[:, -p.shape[1] :]


def _prepared(out: Outputs) -> tuple[Tensor, Tensor]:
    """Return features of unit length `(N, D)` and softmaxes `(N, K)`."""
    features = F.normalize(losses.wide(out.features), dim=1)
    return features, F.softmax(losses.wide(out.logits), dim=1)
