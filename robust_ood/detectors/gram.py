"""Gram matrices of feature maps, and how far they leave the range seen in their class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import Average, ClassExtremes, require_all
from robust_ood.detectors.layers import PENULTIMATE, Layers, named
from robust_ood.errors import UserError
from robust_ood.models import Outputs

_SLOPE = 0.1  # of the surrogate inside the range, where the score is flat
_UNPREDICTED = (
    "classes: the network predicts class {} for no image of the loader that ranges are learned from, so it has none; "
    "fit on more images, or give classes: labels"
)


class Gram(OutputsDetector):
    """Minus the total deviation of the feature maps' Gram matrices from their class's range, <= 0.

    Source: Sastry and Oore 2020: for each layer and power p, `G = (F^p F^pT)^(1/p)` of the map F
    `(C, pixels)`; each value is compared with its smallest and largest on training images;
    deviations are divided by the layer's mean deviation on held-out images and summed. As in the
    authors' code, G is summed over rows before the root, and classes are the *predicted* ones
    (`classes="labels"` takes the labels when fitting, as pytorch-ood does). The held-out images are
    a fixed tenth of the loader's, chosen by their pixels. Layers where none of them deviates are
    divided by 1.

    Numerics: the OOD-attack paper, App. H.2: float64 (float32 where the device has none), and roots
    whose gradient is zero, not infinite, where the Gram matrix is. The score is flat inside the
    range, so the surrogate rises there, too, from the nearer end inwards, by a twentieth for each
    value at most.

    Args:
        net: classifier.
        layers: names of submodules with maps `(N, C, H, W)`; "all" means the layers that the
            network itself names.
        powers: p, whole numbers >= 1.
        classes: which class an image is fitted to.
        held_out: the share of images that estimates the mean deviations, in (0, 1).
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Layers = "all",
        powers: Sequence[int] = (1, 2, 3, 4, 5),
        *,
        classes: Literal["predicted", "labels"] = "predicted",
        held_out: float = 0.1,
    ) -> None:
        names = named(net, layers)
        if PENULTIMATE in names:
            raise UserError(
                "layers: 'penultimate' has no pixels to take a Gram matrix over; name layers with maps"
            )
        super().__init__(net, names)
        if not powers or any(p < 1 or p != int(p) for p in powers):
            raise UserError(f"powers: {list(powers)} are not whole numbers >= 1")
        if classes not in ("predicted", "labels"):
            raise UserError(f"classes: {classes!r} is neither 'predicted' nor 'labels'")
        if not 0 < held_out < 1:
            raise UserError(f"held_out: {held_out} is not in (0, 1)")
        self.powers, self.classes, self.held_out = tuple(powers), classes, held_out
        self.declare("low", "high", "expected")

    def learn(self) -> Rounds:
        """Find the range of each class by one pass and the mean deviations of held-out images by a
        second one.
        """
        extremes = ClassExtremes(self.num_classes)
        yield [self.reading(extremes, lambda seen: self._statistics(seen, held_out=False))]
        if self.classes == "predicted":
            require_all(extremes.counts, _UNPREDICTED)
        require_all(extremes.counts)
        self.keep_exactly(low=extremes.low, high=extremes.high)
        deviations = Average()
        yield [self.reading(deviations, self._held_out_deviations)]
        means = deviations.mean if deviations.count else torch.zeros(len(self.layers))
        self.keep_exactly(expected=torch.where(means > 0, means, 1.0))

    def keep_exactly(self, **learned: Tensor) -> None:
        """Store what was learned in its own precision: a range in float32 would leave out its own
        end points.
        """
        for name, value in learned.items():
            setattr(self, name, value.detach().clone())

    def score(self, out: Outputs) -> Tensor:
        """Return minus the total deviation."""
        return (
            -(self._deviations(out, 0.0) / self.learned("expected").to(out.logits.device))
            .sum(1)
            .float()
        )

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return minus the total deviation, with a slope inside the range."""
        return -(
            self._deviations(out, _SLOPE) / self.learned("expected").to(out.logits.device)
        ).sum(1)

    def attack_surface(self) -> AttackSurface:
        """Return the sloped score, then the log-odds of the class that chooses the range.

        Beyond an end near zero, a difference as small as bfloat16's rounding counts for thousands.
        """
        return AttackSurface((self.surrogate, self.confidence), needs_float32=True)

    def _statistics(self, seen: SeenBatch, held_out: bool) -> tuple[Tensor, Tensor]:
        chosen = (image_keys(seen.images) % 1_000_000 < self.held_out * 1_000_000) == held_out
        labels = (
            seen.out.logits.argmax(1)
            if self.classes == "predicted"
            else seen.classes(self.num_classes)
        )
        return torch.cat(self._grams(seen.out), dim=1)[chosen], labels[chosen]

    def _held_out_deviations(self, seen: SeenBatch) -> tuple[Tensor]:
        chosen = image_keys(seen.images) % 1_000_000 < self.held_out * 1_000_000
        return (self._deviations(seen.out, 0.0)[chosen],)

    def _deviations(self, out: Outputs, slope: float) -> Tensor:
        """Return each layer's deviation from the range of the predicted class, `(N, L)`."""
        grams = self._grams(out)
        predicted = out.logits.argmax(1)
        low, high = (
            self.learned(name)[predicted].to(grams[0]) for name in ("low", "high")
        )  # (N, D)
        values = torch.cat(grams, dim=1)
        outside = (
            F.relu(low - values) / (low + 1e-6).abs() + F.relu(values - high) / (high + 1e-6).abs()
        )
        if slope:
            # Relative to the range's width: relative to its ends, which may be zero, it would drown
            # what lies outside.
            inside = F.relu(torch.minimum(values - low, high - values)) / (high - low + 1e-6)
            outside = outside - slope * inside
        return torch.stack(
            [part.sum(1) for part in torch.split(outside, [g.shape[1] for g in grams], dim=1)],
            dim=1,
        )

    def _grams(self, out: Outputs) -> list[Tensor]:
        """Return each layer's row sums of Gram matrices, all powers, `(N, powers * C)`."""
        found = []
        for layer in self.layers:
            maps = out.maps[layer].flatten(2)  # (N, C, pixels)
            maps = maps.float() if maps.device.type == "mps" else maps.double()
            found.append(torch.cat([_row_sums(maps, power) for power in self.powers], dim=1))
        return found


def _row_sums(maps: Tensor, power: int) -> Tensor:
    """Return `(row sums of F^p F^pT)^(1/p)` with the sums' signs, `(N, C)`, for maps `(N, C,
    pixels)`.
    """
    raised = maps**power
    sums = (raised * raised.sum(1, keepdim=True)).sum(2)  # the matrix itself is never made
    size = sums.abs()
    positive = size > torch.finfo(size.dtype).tiny
    # Selecting before the root, too: the gradient of an unselected infinite slope is NaN, not zero.
    root = torch.where(positive, size, 1.0) ** (1 / power)
    return torch.where(positive, sums.sign() * root, 0.0)
