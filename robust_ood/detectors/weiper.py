"""Histograms of features and of perturbed logits against those of training images: WeiPer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import Average, ClassExtremes
from robust_ood.errors import UserError
from robust_ood.models import Outputs, find_head
from robust_ood.models.wrap import Network
from robust_ood.randomness import generator

_FLOORS = (0.01, 0.025)
"""Added to the histograms of features and of perturbed logits, as in the authors' code."""
_MARGIN = 1e-8  # of the upper end of the bins


class WeiPer(OutputsDetector):
    """Minus the divergences of two histograms from training images', plus an MSP, unbounded.

    Source: Granz et al. 2024 (WeiPer+KLD), as in the authors' code. The head's weights are repeated
    `repeats` times, each row plus noise of `distance` times its length. One histogram is of an
    image's features, the other of its perturbed logits; both have bins of equal width over the
    range of the training images, and are compared with the mean histograms of those by the
    symmetric Kullback-Leibler divergence, the image's after smoothing. The MSP is the mean over the
    perturbed heads.

    A histogram is constant almost everywhere. Attackers get each value's weight shared between the
    two nearest bins.

    Args:
        net: classifier with a linear head.
        repeats: r, >= 1. `repeats` times the head's weights are held.
        distance: delta, > 0.
        bins: >= 2.
        smoothing: how many neighbouring bins are averaged, >= 1.
        logit_weight: of the logits' divergence (lambda_1), >= 0.
        msp_weight: of the MSP (lambda_2), >= 0.
        seed: of the noise.
    """

    needs = "head"

    @typed
    def __init__(
        self,
        net: Network,
        repeats: int = 100,
        distance: float = 2.1,
        bins: int = 100,
        smoothing: int = 20,
        logit_weight: float = 1.0,
        msp_weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(net)
        if repeats < 1:
            raise UserError(f"repeats: expected a whole number >= 1, got {repeats}")
        if not distance > 0:
            raise UserError(f"distance: expected a number > 0, got {distance}")
        if bins < 2:
            raise UserError(f"bins: expected a whole number >= 2, got {bins}")
        if smoothing < 1:
            raise UserError(f"smoothing: expected a whole number >= 1, got {smoothing}")
        for field, weight in (("logit_weight", logit_weight), ("msp_weight", msp_weight)):
            if not weight >= 0:
                raise UserError(f"{field}: expected a number >= 0, got {weight}")
        self.repeats = repeats
        self.distance = distance
        self.bins = bins
        self.smoothing = smoothing
        self.logit_weight = logit_weight
        self.msp_weight = msp_weight
        self.seed = seed
        self.declare("perturbed", "ranges", "histograms")

    def learn(self) -> Rounds:
        """Find the ranges by one pass, and the mean histograms by a second one."""
        weight = find_head(self.net).weight.detach()  # (K, D)
        draws = generator(self.seed, "weight perturbations")
        noise = torch.randn((self.repeats, *weight.shape), generator=draws)
        noise = F.normalize(noise, dim=2).to(weight)
        noise = noise * (self.distance * weight.norm(dim=1, keepdim=True))
        self.keep(perturbed=(weight + noise).flatten(0, 1))  # (r K, D)
        extremes = (ClassExtremes(1), ClassExtremes(1))

        def of_features(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            values = self._values(seen.out)[0]
            return values, values.new_zeros(len(values)).long()

        def of_logits(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            values = self._values(seen.out)[1]
            return values, values.new_zeros(len(values)).long()

        yield [self.reading(extremes[0], of_features), self.reading(extremes[1], of_logits)]
        ranges = []
        for extreme in extremes:
            ranges.append(torch.stack([extreme.low.amin(), extreme.high.amax() + _MARGIN]))
        self.keep(ranges=torch.stack(ranges))
        average = Average()
        yield [self.reading(average, lambda seen: (self._histograms(seen.out).flatten(1),))]
        self.keep(histograms=average.mean.view(2, self.bins))

    def score(self, out: Outputs) -> Tensor:
        """Return the mean MSP minus the divergences."""
        return self._compare(out, self._histograms(out))

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the score `(N,)` of histograms whose values are shared between bins."""
        rows = []
        for number, values in enumerate(self._values(out)):
            rows.append(self._shared_histogram(values, number))
        return self._compare(out, torch.stack(rows, dim=1))

    def attack_surface(self) -> AttackSurface:
        """Return the score of soft histograms, then the log-odds of the predicted class."""
        return AttackSurface((self.surrogate, self.confidence))

    def _values(self, out: Outputs) -> tuple[Tensor, Tensor]:
        """Return the features `(N, D)` and the perturbed logits `(N, r K)`."""
        features = losses.wide(out.features)
        logits = features @ self.learned("perturbed").to(features).T
        if out.head.bias is not None:
            logits = logits + out.head.bias.to(features).repeat(self.repeats)
        return features, logits

    def _places(self, values: Tensor, number: int) -> Tensor:
        """Return where values lie, in bins from the lower end of their range."""
        low, high = self.learned("ranges")[number].to(values)
        places: Tensor = (values - low) / (high - low).clamp_min(_MARGIN) * self.bins
        return places

    def _histograms(self, out: Outputs) -> Tensor:
        """Return the share of values in each bin, `(N, 2, bins)`; values outside are in none."""
        rows = []
        for number, values in enumerate(self._values(out)):
            places = self._places(values, number)
            inside = (places >= 0) & (places < self.bins)
            chosen = places.floor().clamp(0, self.bins - 1).long()
            counts = values.new_zeros(len(values), self.bins)
            rows.append(counts.scatter_add(1, chosen, inside.to(values)) / values.shape[1])
        return torch.stack(rows, dim=1)

    def _shared_histogram(self, values: Tensor, number: int) -> Tensor:
        """Return the histogram `(N, bins)` with each value shared between the two nearest bins."""
        # One bin more on each side takes what lies outside.
        places = (self._places(values, number) + 0.5).clamp(0, self.bins + 1)
        lower = places.detach().floor().clamp_max(self.bins).long()
        share = places - lower
        counts = values.new_zeros(len(values), self.bins + 2)
        counts = counts.scatter_add(1, lower, 1 - share).scatter_add(1, lower + 1, share)
        return counts[:, 1:-1] / values.shape[1]

    def _compare(self, out: Outputs, histograms: Tensor) -> Tensor:
        """Return the score of histograms `(N, 2, bins)`."""
        typical = self.learned("histograms").to(histograms)  # (2, bins)
        divergences = []
        for number, floor in enumerate(_FLOORS):
            smooth = _smoothed(histograms[:, number], self.smoothing)
            divergences.append(_divergence(_normalised(typical[number] + floor), smooth + floor))
        logits = self._values(out)[1]
        logits = logits.view(len(logits), self.repeats, -1)  # (N, r, K)
        msp = F.softmax(logits, dim=2).amax(2).mean(1)
        return self.msp_weight * msp - divergences[0] - self.logit_weight * divergences[1]


def _smoothed(histograms: Tensor, size: int) -> Tensor:
    """Return histograms `(N, bins)` averaged over `size` neighbours, the ends repeated."""
    before = (size - 1) // 2
    padded = F.pad(histograms[:, None], (before, size - 1 - before), mode="replicate")
    return F.avg_pool1d(padded, size, stride=1)[:, 0]


def _normalised(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True)


def _divergence(typical: Tensor, values: Tensor) -> Tensor:
    """Return the symmetric Kullback-Leibler divergence `(N,)` of values `(N, bins)`."""
    others = _normalised(values)
    return ((typical - others) * (typical.log() - others.log())).sum(1)
