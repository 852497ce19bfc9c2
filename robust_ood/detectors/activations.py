"""Activation shaping: any score of logits, after the penultimate features or the head's weights
have been changed.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors.attack_surface import AttackSurface, surface_of
from robust_ood.detectors.contract import Detector, OutputsDetector, full_precision
from robust_ood.detectors.fitting.passes import Pass, Rounds
from robust_ood.detectors.fitting.quantiles import Quantile
from robust_ood.detectors.fitting.statistics import Average
from robust_ood.detectors.logits import Energy
from robust_ood.errors import UserError
from robust_ood.models import Outputs, find_head, outputs

_MOST = 50.0  # largest exponent of a scale, so that logits stay finite; features >= 0 reach 20 at the 95th percentile


_LARGEST = 1e30  # of a scaled feature, so that float32 holds its products with the weights


class Shaped(OutputsDetector):
    """Another detector's score of a forward pass whose end has been changed.

    Args:
        scored: a detector that reads outputs, or a network, which is scored by its `Energy`.
    """

    def __init__(self, scored: nn.Module) -> None:
        if isinstance(scored, Detector) and not isinstance(scored, OutputsDetector):
            raise UserError(
                f"score: {type(self).__name__} wraps a network or a score of its outputs, not {type(scored).__name__}; "
                f"put it inside: {type(scored).__name__}({type(self).__name__}(...))"
            )
        detector = scored if isinstance(scored, OutputsDetector) else Energy(scored)
        super().__init__(detector.net, detector.layers)
        self.detector = detector

    @abstractmethod
    def shape(self, out: Outputs) -> Outputs:
        """Return the changed forward pass."""

    def shape_smoothly(self, out: Outputs) -> Outputs:
        """Return the changed forward pass as an attacker differentiates it."""
        return self.shape(out)

    def score(self, out: Outputs) -> Tensor:
        """Return the wrapped score of the changed forward pass."""
        return self.detector.score(self.shape(out))

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the wrapped surrogate of the changed forward pass."""
        return self.detector.surrogate_score(self.shape_smoothly(out))

    def attack_surface(self) -> AttackSurface:
        """Return the surrogate of changed passes, then the wrapped one's others, of unchanged."""
        wrapped = surface_of(self.detector)
        differentiable = type(self).shape_smoothly is Shaped.shape_smoothly
        return AttackSurface(
            (self.surrogate, *wrapped.surrogates[1:]), exact=wrapped.exact and differentiable
        )

    def learn(self) -> Rounds:
        """Fit the change, then the wrapped detector on changed forward passes."""
        yield from self.learn_shape()
        for passes in self.detector.learn():
            yield [self._after_change(item) for item in passes]

    def learn_shape(self) -> Rounds:
        """Fit the change; nothing by default."""
        yield from ()

    def _after_change(self, item: Pass) -> Pass:
        return item._replace(
            read=lambda seen: item.read(seen._replace(outputs=self.shape(seen.out)))
        )


def _with_features(out: Outputs, features: Tensor) -> Outputs:
    """Return the forward pass that ends with these features."""
    logits = out.head(features.to(out.head.weight.dtype))
    return out._replace(features=features, logits=logits)


def _share(percentile: float) -> float:
    if not 0 <= percentile < 100:
        raise UserError(f"percentile: {percentile} is not in [0, 100)")
    return percentile / 100


class ReAct(Shaped):
    """Features clipped from above at a percentile of in-distribution activations.

    Source: Sun et al. 2021, with the penultimate features; percentile 90 there, 85 to 99 in
    OpenOOD's search. The percentile is exact, over all entries of all training features.

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        percentile: in [0, 100).
        threshold: the clipping value itself, for no fitting; None to fit it.
    """

    def __init__(
        self, scored: nn.Module, percentile: float = 90.0, threshold: float | None = None
    ) -> None:
        super().__init__(scored)
        self.share, self.fits = _share(percentile), threshold is None
        if threshold is None:
            self.declare("threshold")
        else:
            self.register_buffer("threshold", torch.tensor(float(threshold)))

    def learn_shape(self) -> Rounds:
        """Find the percentile by two passes."""
        if self.fits:
            quantile = Quantile(self.share)
            yield from quantile.rounds(
                lambda histogram: self.reading(histogram, lambda seen: (seen.out.features,))
            )
            self.keep(threshold=torch.tensor(quantile.value))

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with clipped features."""
        features = losses.wide(out.features)
        return _with_features(out, features.minimum(self.learned("threshold").to(features)))


class ASH(Shaped):
    """Features of which only the largest are kept, as they are (P), all equal with the old sum (B),
    or scaled up (S).

    Source: Djurisic et al. 2023, on the pooled penultimate features as in OpenOOD: each image's
    smallest `percentile` of features are set to zero; S multiplies the others by `exp(sum before /
    sum after)`. The exponent is capped at 50. Which features are kept changes without a gradient,
    and B forgets how large they were. Attackers follow P's score for B, then, for every variant,
    features chosen by a sigmoid around the smallest kept one.

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        percentile: share set to zero, in [0, 100); 65 to 95 in OpenOOD's search.
        variant: "P", "B" or "S".
    """

    def __init__(
        self, scored: nn.Module, percentile: float = 90.0, variant: Literal["P", "B", "S"] = "S"
    ) -> None:
        super().__init__(scored)
        if variant not in ("P", "B", "S"):
            raise UserError(f"variant: {variant!r} is none of 'P', 'B', 'S'")
        self.share, self.variant = _share(percentile), variant

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with pruned features."""
        features = losses.wide(out.features)
        kept, places = _largest(features, self.share)
        if self.variant == "B":
            kept = (features.sum(1, keepdim=True) / kept.shape[1]).expand_as(kept)
        pruned = torch.zeros_like(features).scatter(1, places, kept)
        return _with_features(
            out, _scaled(pruned, features, kept) if self.variant == "S" else pruned
        )

    def shape_smoothly(self, out: Outputs) -> Outputs:
        """Return the forward pass with pruned features, for B those of P."""
        if self.variant != "B":
            return self.shape(out)
        features = losses.wide(out.features)
        kept, places = _largest(features, self.share)
        return _with_features(out, torch.zeros_like(features).scatter(1, places, kept))

    def softly(self, images: Tensor) -> Tensor:
        """Return the wrapped surrogate `(N,)` of features that are pruned softly, so that others
        can become large.
        """
        out = outputs(self.net, images, self.layers)
        with full_precision(images):
            features = losses.wide(out.features)
            edge = _largest(features, self.share)[0][:, -1:]
            width = features.std(1, correction=0, keepdim=True).detach() / 2 + 1e-6
            kept = torch.sigmoid(
                (features - edge) / width
            )  # (N, D), how much of each feature is kept
            pruned = kept * features
            if self.variant == "B":
                pruned = kept * features.sum(1, keepdim=True) / kept.sum(1, keepdim=True)
            shaped = _scaled(pruned, features, pruned) if self.variant == "S" else pruned
            return self.detector.surrogate_score(_with_features(out, shaped))

    def attack_surface(self) -> AttackSurface:
        """Return the score with hard choices, with soft ones, then the predicted class's log-odds.

        Which features are kept, and with them the score, jumps where rounding swaps two.
        """
        return AttackSurface(
            (self.surrogate, self.softly, self.confidence),
            exact=surface_of(self.detector).exact and self.variant != "B",
            needs_float32=True,
        )


class SCALE(Shaped):
    """Features multiplied by `exp(sum of all / sum of the largest)`, none of them pruned.

    Source: Xu et al. 2024, on the pooled penultimate features; percentile 85 in its code and
    OpenOOD (65 to 95 searched). The exponent is capped at 50.

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        percentile: share of features that do not count as large, in [0, 100).
    """

    def __init__(self, scored: nn.Module, percentile: float = 85.0) -> None:
        super().__init__(scored)
        self.share = _share(percentile)

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with scaled features."""
        features = losses.wide(out.features)
        return _with_features(out, _scaled(features, features, _largest(features, self.share)[0]))


def _largest(features: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the values and places of the features that remain when that share is dropped, `(N,
    k)`, largest first.
    """
    size = features.shape[1]
    found = features.topk(max(size - round(size * share), 1), dim=1)
    return found.values, found.indices


def _scaled(shaped: Tensor, features: Tensor, kept: Tensor) -> Tensor:
    whole, part = features.sum(1, keepdim=True), kept.sum(1, keepdim=True)
    exponent = whole / torch.where(
        part.abs() > 1e-12, part, 1.0
    )  # an image without activations stays without
    scaled = shaped * exponent.clamp(-_MOST, _MOST).exp()
    return scaled.clamp(-_LARGEST, _LARGEST)


class DICE(Shaped):
    """Logits of the head with only those weights that contribute most on in-distribution images.

    Source: Sun and Li 2022: a weight's contribution is itself times the mean feature; the smallest
    `percentile` of them are set to zero (p = 90 for CIFAR-10, 70 for ImageNet).

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        percentile: share of weights set to zero, in [0, 100).
    """

    def __init__(self, scored: nn.Module, percentile: float = 90.0) -> None:
        super().__init__(scored)
        self.share = _share(percentile)
        self.declare("mean", "threshold")

    def learn_shape(self) -> Rounds:
        """Average the features by one pass, and find the contribution above which weights stay."""
        average = Average()
        yield [self.reading(average, lambda seen: (seen.out.features,))]
        self.keep(mean=average.mean)
        ordered = self._contributions(find_head(self.net)).flatten().sort().values
        place = self.share * (
            len(ordered) - 1
        )  # `torch.quantile` refuses more than 16 million weights
        low, high = ordered[int(place)], ordered[min(int(place) + 1, len(ordered) - 1)]
        self.keep(threshold=(low + (high - low) * (place % 1)).view(1))

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with the logits of the sparse head."""
        features = losses.wide(out.features)
        weight = out.head.weight.to(features)  # (K, D)
        above = self._contributions(out.head) > self.learned("threshold")
        sparse = torch.where(above, weight, 0.0)
        bias = None if out.head.bias is None else out.head.bias.to(features)
        return out._replace(logits=F.linear(features, sparse, bias))

    def _contributions(self, head: nn.Linear) -> Tensor:
        """Return each weight times the mean of its feature, `(K, D)`."""
        mean = self.learned("mean")
        return head.weight.detach().to(mean) * mean
