"""Shaping fitted to in-distribution features, or scaled by them: VRA, LTS, OptFS and LINe."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.activations import Shaped, largest, share_of, with_features
from robust_ood.detectors.attack_surface import AttackSurface, surface_of
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.passes import (
    Pass,
    Rounds,
    SeenBatch,
    read_features,
    together,
)
from robust_ood.detectors.fitting.quantiles import Quantile, quantile_of
from robust_ood.detectors.fitting.statistics import Average, ClassMeans, Statistic, double
from robust_ood.errors import UserError
from robust_ood.models import Outputs, find_head
from robust_ood.models.wrap import Network

_SMALLEST = 1e-12  # of a sum that divides
_BINS = 100
_TAIL = 1e-3
"""The share of feature values below and above OptFS's bins."""


class VRA(Shaped):
    """Features clipped from above, and set to zero (or clipped) from below.

    Source: Xu et al. 2023 (variational rectified activation): values below the percentile `low` of
    all training features become 0, those above `high` become that percentile. `shift` is VRA+'s
    constant, added to the values between. OpenOOD and pytorch-ood clip from below, too
    (`below="clip"`); pytorch-ood has thresholds of each entry of the last feature map, where the
    others have two for all.

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        low: percentile in [0, 100); 60 in the authors' CIFAR runs, 1 to 15 in OpenOOD's search.
        high: percentile in [0, 100), >= `low`; 90 or 95 there, 85 to 99 in OpenOOD's search.
        below: "zero" or "clip".
        shift: added between the thresholds, of any size; 0.6 in the authors' VRA+ on CIFAR-10.
    """

    @typed
    def __init__(
        self,
        scored: nn.Module,
        low: float = 60.0,
        high: float = 95.0,
        below: Literal["zero", "clip"] = "zero",
        shift: float = 0.0,
    ) -> None:
        super().__init__(scored)
        self.shares = (share_of(low, "low"), share_of(high, "high"))
        if self.shares[0] > self.shares[1]:
            raise UserError(f"low: expected at most high ({high}), got {low}")
        if below not in ("zero", "clip"):
            raise UserError(f"below: expected 'zero' or 'clip', got {below!r}")
        if not math.isfinite(shift):
            raise UserError(f"shift: expected a finite number, got {shift}")
        self.below = below
        self.shift = shift
        self.declare("thresholds")

    def learn_shape(self) -> Rounds:
        """Find both percentiles by two passes."""
        quantiles = [Quantile(share) for share in self.shares]

        def reading(statistic: Statistic) -> Pass:
            return self.reading(statistic, read_features)

        yield from together([quantile.rounds(reading) for quantile in quantiles])
        self.keep(thresholds=torch.tensor([quantile.value for quantile in quantiles]))

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with rectified features."""
        features = losses.wide(out.features)
        low, high = self.learned("thresholds").to(features)
        middle = torch.where(features > high, high, features + self.shift)
        floor = low if self.below == "clip" else torch.zeros_like(low)
        return with_features(out, torch.where(features < low, floor, middle))

    def attack_surface(self) -> AttackSurface:
        """Return the score, the one of unshaped features, then the predicted class's log-odds.

        Features beyond a threshold have a gradient in the second.
        """
        unshaped = self.stand_in(self.detector.surrogate_score)
        exact = surface_of(self.detector).exact
        return AttackSurface((self.surrogate, unshaped, self.confidence), exact=exact)


class LTS(Shaped):
    """Logits multiplied by the square of the ratio of all features to the largest ones.

    Source: Djurisic et al. 2024 (logit scaling), `(sum of f / sum of the largest of f)^2` with
    negative features counted as 0, as in the authors' code. The head still reads them.

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        percentile: share of features that do not count as large, in [0, 100); 95 there.
    """

    @typed
    def __init__(self, scored: nn.Module, percentile: float = 95.0) -> None:
        super().__init__(scored)
        self.share = share_of(percentile)

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with scaled logits."""
        features = losses.wide(out.features).relu()
        total = features.sum(1, keepdim=True)  # (N, 1)
        kept_total = largest(features, self.share)[0].sum(1, keepdim=True)
        # An image without activations keeps its logits.
        active = kept_total > _SMALLEST
        ratio = torch.where(active, total / kept_total.clamp_min(_SMALLEST), 1.0)
        return out._replace(logits=losses.wide(out.logits) * ratio.square())


class OptFS(OutputsDetector):
    """The predicted logit, without its bias, of features that are scaled value by value, unbounded.

    `sum over i of w_yi theta(f_i) f_i`, where theta is constant in each of 100 bins of equal width,
    from the 0.1st to the 99.9th percentile of the training features, and 0 outside. Source: Zhao et
    al. 2024 (optimal feature shaping), their closed form: theta of a bin is proportional to the
    mean over training images of what that bin's features add to the predicted logit, `sum over i in
    the bin of w_yi f_i`. The code scales theta to length 1000; here it has the length 10, that of
    all ones. The order of images is the same.

    theta jumps from bin to bin. Attackers get it interpolated.

    Args:
        net: classifier with a linear head.
    """

    needs = "head"

    @typed
    def __init__(self, net: Network) -> None:
        super().__init__(net)
        self.declare("edges", "theta")

    def learn(self) -> Rounds:
        """Find the range of the features by two passes, and theta by a third."""
        quantiles = [Quantile(share) for share in (_TAIL, 1 - _TAIL)]

        def reading(statistic: Statistic) -> Pass:
            return self.reading(statistic, read_features)

        yield from together([quantile.rounds(reading) for quantile in quantiles])
        low, high = (quantile.value for quantile in quantiles)
        if not high > low:
            raise UserError("loader: the features do not vary over the images")
        self.keep(edges=torch.tensor([low, high]))
        average = Average()
        yield [self.reading(average, lambda seen: (self._by_bin(seen.out),))]
        theta = average.mean
        length = torch.linalg.vector_norm(theta).clamp_min(_SMALLEST)
        self.keep(theta=theta / length * math.sqrt(_BINS))

    def score(self, out: Outputs) -> Tensor:
        """Return the sum of the scaled features' contributions."""
        contributions, places = self._contributions(out)
        inside = (places >= 0) & (places < _BINS)
        bins = places.floor().clamp(0, _BINS - 1).long()
        theta = self.learned("theta").to(contributions)
        return (contributions * torch.where(inside, theta[bins], 0.0)).sum(1)

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the score `(N,)` with theta interpolated between the bins' centres."""
        contributions, places = self._contributions(out)
        theta = self.learned("theta").to(contributions)
        position = (places - 0.5).clamp(0, _BINS - 1)
        lower = position.detach().floor().clamp_max(_BINS - 2).long()  # (N, D)
        share = position - lower
        interpolated = (1 - share) * theta[lower] + share * theta[lower + 1]
        return (contributions * interpolated).sum(1)

    def attack_surface(self) -> AttackSurface:
        """Return the interpolated score, then the log-odds of the predicted class."""
        return AttackSurface((self.surrogate, self.confidence))

    def _contributions(self, out: Outputs) -> tuple[Tensor, Tensor]:
        """Return what each feature adds to the predicted logit, and its place in bins, `(N, D)`."""
        features = losses.wide(out.features)
        weight = out.head.weight.to(features)[out.logits.argmax(1)]  # (N, D)
        low, high = self.learned("edges").to(features)
        return weight * features, (features - low) / (high - low) * _BINS

    def _by_bin(self, out: Outputs) -> Tensor:
        """Return the sum of the contributions in each bin, `(N, 100)`."""
        contributions, places = self._contributions(out)
        inside = (places >= 0) & (places < _BINS)
        bins = places.floor().clamp(0, _BINS - 1).long()
        sums = contributions.new_zeros(len(contributions), _BINS)
        return sums.scatter_add(1, bins, torch.where(inside, contributions, 0.0))


class LINe(Shaped):
    """Logits of clipped features, of only the neurons and weights that matter to the class.

    Source: Ahn et al. 2023 (leveraging important neurons), as in the authors' code. A neuron's
    importance to a class is the first-order Shapley value of the class's logit, which for a linear
    head is `w_ci` times the mean feature of the training images that are predicted as the class (of
    all, where none are). Features are clipped; the predicted class c then keeps the neurons whose
    importance to it is above that percentile of its neurons, and the weights `w_ki` whose product
    with `|importance of i to c|` is above that percentile of all such products.

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        neurons: percentile of neurons that are dropped, in [0, 100); 10 in the code for ImageNet.
        weights: percentile of weights that are dropped, likewise.
        threshold: the clipping value; 0.8 there. None for the 90th percentile of training features,
            as ReAct's.
    """

    @typed
    def __init__(
        self,
        scored: nn.Module,
        neurons: float = 10.0,
        weights: float = 10.0,
        threshold: float | None = None,
    ) -> None:
        super().__init__(scored)
        self.neurons = share_of(neurons, "neurons")
        self.weights = share_of(weights, "weights")
        self.given_threshold = threshold
        self.declare("threshold", "importance", "neuron_limits", "weight_limits")

    def learn_shape(self) -> Rounds:
        """Find the clipping value by two passes, and the mean features by the first of them."""
        means = ClassMeans(self.num_classes)
        quantile = Quantile(0.9)

        def reading(statistic: Statistic) -> Pass:
            return self.reading(statistic, read_features)

        def by_prediction(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return seen.out.features, seen.out.logits.argmax(1)

        runs = [iter([[self.reading(means, by_prediction)]])]
        threshold = self.given_threshold
        if threshold is None:
            runs.append(quantile.rounds(reading))
        yield from together(runs)
        if threshold is None:
            threshold = quantile.value
        weight = double(find_head(self.net).weight)  # (K, D)
        overall = means.sums.sum(0) / means.counts.sum()
        counts = means.counts[:, None]
        by_class = torch.where(counts > 0, means.sums / counts.clamp_min(1), overall)
        importance = weight * by_class
        neuron_limits = []
        weight_limits = []
        for values in importance:
            neuron_limits.append(quantile_of(values, self.neurons))
            weight_limits.append(quantile_of((values.abs() * weight).flatten(), self.weights))
        self.keep(
            threshold=torch.tensor([threshold]),
            importance=importance,
            neuron_limits=torch.stack(neuron_limits),
            weight_limits=torch.stack(weight_limits),
        )

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with clipped features, pruned neurons and pruned weights."""
        clipped = losses.wide(out.features)
        clipped = clipped.minimum(self.learned("threshold").to(clipped))
        weight = out.head.weight.to(clipped)  # (K, D)
        bias = weight.new_zeros(len(weight))
        if out.head.bias is not None:
            bias = out.head.bias.to(clipped)
        predicted = F.linear(clipped, weight, bias).argmax(1)  # (N,)
        logits = clipped.new_zeros(len(clipped), len(weight))
        # One class at a time: each has weights (K, D) of its own.
        for label in torch.unique(predicted).tolist():
            members = (predicted == label).nonzero()[:, 0]
            sparse = self._sparse_weight(weight, label)
            logits = logits.index_copy(0, members, F.linear(clipped[members], sparse, bias))
        return out._replace(features=clipped, logits=logits)

    def _sparse_weight(self, weight: Tensor, label: int) -> Tensor:
        """Return the head's weights `(K, D)` for images that are predicted as one class."""
        importance = self.learned("importance")[label].to(weight)  # (D,)
        neurons = importance > self.learned("neuron_limits")[label].to(weight)
        products = importance.abs() * weight  # (K, D)
        kept = neurons & (products > self.learned("weight_limits")[label].to(weight))
        return torch.where(kept, weight, 0.0)

    def attack_surface(self) -> AttackSurface:
        """Return the score, the one of unshaped features, then the predicted class's log-odds."""
        unshaped = self.stand_in(self.detector.surrogate_score)
        exact = surface_of(self.detector).exact
        return AttackSurface((self.surrogate, unshaped, self.confidence), exact=exact)
