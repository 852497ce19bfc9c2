"""Activation shaping: scores of logits after a change of penultimate features or head weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface, surface_of
from robust_ood.detectors.contract import Detector, OutputsDetector, full_precision
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch, read_features
from robust_ood.detectors.fitting.quantiles import Quantile, quantile_of
from robust_ood.detectors.fitting.statistics import Average
from robust_ood.detectors.logits import Energy
from robust_ood.errors import UserError
from robust_ood.models import Outputs, find_head, outputs

# The largest exponent of a scale, so that logits stay finite. Features >= 0 reach 20 at the 95th
# percentile.
_MAX_EXPONENT = 50.0


_LARGEST = 1e30  # of a scaled feature, so that float32 holds its products with the weights


class Shaped(OutputsDetector):
    """Another detector's score of a forward pass whose end has been changed.

    Args:
        scored: a detector that reads outputs, or a network, which is scored by its `Energy`.
    """

    needs = "head"

    @typed
    def __init__(self, scored: nn.Module) -> None:
        if isinstance(scored, Detector) and not isinstance(scored, OutputsDetector):
            raise UserError(
                f"score: {type(self).__name__} wraps a network or a score of its outputs, "
                f"not {type(scored).__name__}; put it inside: "
                f"{type(scored).__name__}({type(self).__name__}(...))"
            )
        detector = scored
        if not isinstance(detector, OutputsDetector):
            detector = Energy(scored)
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

    def published_score(self, out: Outputs) -> Tensor:
        """Return the wrapped detector's published value of the changed forward pass."""
        return self.detector.published_score(self.shape(out))

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the wrapped surrogate of the changed forward pass."""
        return self.detector.surrogate_score(self.shape_smoothly(out))

    def attack_surface(self) -> AttackSurface:
        """Return the surrogate of the changed forward pass, then the wrapped detector's others.

        The others read the unchanged forward pass.
        """
        wrapped = surface_of(self.detector)
        differentiable = type(self).shape_smoothly is Shaped.shape_smoothly
        return AttackSurface(
            (self.surrogate, *wrapped.surrogates[1:]), exact=wrapped.exact and differentiable
        )

    def learn(self) -> Rounds:
        """Fit the change, then the wrapped detector on changed forward passes."""
        yield from self.learn_shape()
        for passes in self.detector.learn():
            yield [self._on_changed(item) for item in passes]

    def learn_shape(self) -> Rounds:
        """Fit the change; there is nothing to fit by default."""
        yield from ()

    def _on_changed(self, item: Pass) -> Pass:
        """Return the pass that reads changed forward passes."""

        def read(seen: SeenBatch) -> tuple[Tensor, ...]:
            return item.read(seen._replace(outputs=self.shape(seen.out)))

        return item._replace(read=read)


def with_features(out: Outputs, features: Tensor) -> Outputs:
    """Return the forward pass that ends with these features `(N, D)`."""
    logits = out.head(features.to(out.head.weight.dtype))
    return out._replace(features=features, logits=logits)


def share_of(percentile: float, field: str = "percentile") -> float:
    """Return a percentile in [0, 100) as a share, or raise `UserError`."""
    if not 0 <= percentile < 100:
        raise UserError(f"{field}: expected a number in [0, 100), got {percentile}")
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

    @typed
    def __init__(
        self, scored: nn.Module, percentile: float = 90.0, threshold: float | None = None
    ) -> None:
        super().__init__(scored)
        self.share = share_of(percentile)
        self.fits = threshold is None
        if threshold is None:
            self.declare("threshold")
        else:
            self.register_buffer("threshold", torch.tensor(float(threshold)))

    def learn_shape(self) -> Rounds:
        """Find the percentile by two passes."""
        if not self.fits:
            return
        quantile = Quantile(self.share)
        yield from quantile.rounds(lambda histogram: self.reading(histogram, read_features))
        self.keep(threshold=torch.tensor(quantile.value))

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with clipped features."""
        features = losses.wide(out.features)
        threshold = self.learned("threshold").to(features)
        return with_features(out, features.minimum(threshold))


class ASH(Shaped):
    """Features of which only the largest are kept: unchanged (P), all equal (B) or scaled up (S).

    Source: Djurisic et al. 2023, on the pooled penultimate features as in OpenOOD: each image's
    smallest `percentile` of features are set to zero; B gives the others equal values with the old
    sum, S multiplies them by `exp(sum before / sum after)`. The exponent is capped at 50. Which
    features are kept changes without a gradient, and B discards how large they were. Attackers
    follow P's score for B, then, for every variant, features chosen by a sigmoid around the
    smallest kept one.

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        percentile: share set to zero, in [0, 100); 65 to 95 in OpenOOD's search.
        variant: "P", "B" or "S".
    """

    @typed
    def __init__(
        self, scored: nn.Module, percentile: float = 90.0, variant: Literal["P", "B", "S"] = "S"
    ) -> None:
        super().__init__(scored)
        if variant not in ("P", "B", "S"):
            raise UserError(f"variant: expected 'P', 'B' or 'S', got {variant!r}")
        self.share = share_of(percentile)
        self.variant = variant

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with pruned features."""
        features = losses.wide(out.features)
        kept, columns = largest(features, self.share)
        if self.variant == "B":
            # Equal values with the old sum.
            kept = (features.sum(1, keepdim=True) / kept.shape[1]).expand_as(kept)  # (N, k)
        pruned = torch.zeros_like(features).scatter(1, columns, kept)
        if self.variant == "S":
            pruned = _scaled(pruned, features, kept)
        return with_features(out, pruned)

    def shape_smoothly(self, out: Outputs) -> Outputs:
        """Return the forward pass with pruned features, for B those of P."""
        # B's values are all equal: their gradient does not tell the features apart.
        if self.variant != "B":
            return self.shape(out)
        features = losses.wide(out.features)
        kept, columns = largest(features, self.share)
        return with_features(out, torch.zeros_like(features).scatter(1, columns, kept))

    def softly(self, images: Tensor) -> Tensor:
        """Return the wrapped surrogate `(N,)` of features that are pruned softly.

        A feature that the score drops then has a gradient, too, and can become large.
        """
        out = outputs(self.net, images, self.layers)
        with full_precision(images):
            shaped = self._pruned_softly(losses.wide(out.features))
            return self.detector.surrogate_score(with_features(out, shaped))

    def _pruned_softly(self, features: Tensor) -> Tensor:
        # The width of the sigmoid is half the features' standard deviation, never zero.
        smallest_kept = largest(features, self.share)[0][:, -1:]  # (N, 1)
        width = features.std(1, correction=0, keepdim=True).detach() / 2 + 1e-6
        # How much of each feature is kept.
        weights = torch.sigmoid((features - smallest_kept) / width)  # (N, D)
        if self.variant == "B":  # equal values with the old sum
            return weights * features.sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        pruned = weights * features
        if self.variant == "S":
            return _scaled(pruned, features, pruned)
        return pruned

    def attack_surface(self) -> AttackSurface:
        """Return the score with hard choices, with soft ones, then the predicted class's log-odds.

        The kept features, and with them the score, jump where rounding swaps two features.
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

    @typed
    def __init__(self, scored: nn.Module, percentile: float = 85.0) -> None:
        super().__init__(scored)
        self.share = share_of(percentile)

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with scaled features."""
        features = losses.wide(out.features)
        kept, _ = largest(features, self.share)
        return with_features(out, _scaled(features, features, kept))


def largest(features: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the features that remain when that share is dropped, and their columns.

    Both are `(N, k)`, largest first.
    """
    size = features.shape[1]
    count = max(size - round(size * share), 1)
    selected = features.topk(count, dim=1)
    return selected.values, selected.indices


def _scaled(shaped: Tensor, features: Tensor, kept: Tensor) -> Tensor:
    """Return `shaped` times `exp(sum of features / sum of kept ones)`, `(N, D)`."""
    total = features.sum(1, keepdim=True)  # (N, 1)
    kept_total = kept.sum(1, keepdim=True)
    # An image without activations stays without any.
    divisor = torch.where(kept_total.abs() > 1e-12, kept_total, 1.0)
    exponent = total / divisor
    scaled = shaped * exponent.clamp(-_MAX_EXPONENT, _MAX_EXPONENT).exp()
    return scaled.clamp(-_LARGEST, _LARGEST)


class DICE(Shaped):
    """Logits of the head with only the weights that contribute most on in-distribution images.

    Source: Sun and Li 2022: a weight's contribution is itself times the mean feature; the smallest
    `percentile` of them are set to zero (p = 90 for CIFAR-10, 70 for ImageNet).

    Args:
        scored: a network (scored by its energy, as in the paper) or a detector that reads outputs.
        percentile: share of weights set to zero, in [0, 100).
    """

    @typed
    def __init__(self, scored: nn.Module, percentile: float = 90.0) -> None:
        super().__init__(scored)
        self.share = share_of(percentile)
        self.declare("mean", "threshold")

    def learn_shape(self) -> Rounds:
        """Average the features by one pass, and find the contribution above which weights stay."""
        average = Average()
        yield [self.reading(average, read_features)]
        self.keep(mean=average.mean)
        contributions = self._contributions(find_head(self.net)).flatten()
        threshold = quantile_of(contributions, self.share)
        self.keep(threshold=threshold.view(1))

    def shape(self, out: Outputs) -> Outputs:
        """Return the forward pass with the logits of the sparse head."""
        features = losses.wide(out.features)
        weight = out.head.weight.to(features)  # (K, D)
        kept = self._contributions(out.head) > self.learned("threshold")
        sparse = torch.where(kept, weight, 0.0)  # (K, D)
        bias = None
        if out.head.bias is not None:
            bias = out.head.bias.to(features)
        return out._replace(logits=F.linear(features, sparse, bias))

    def _contributions(self, head: nn.Linear) -> Tensor:
        """Return each weight times the mean of its feature, `(K, D)`."""
        mean = self.learned("mean")
        return head.weight.detach().to(mean) * mean
