"""Gram matrices of feature maps, and how far they leave the range seen in their class."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import Average, ClassExtremes, require_all
from robust_ood.detectors.layers import PENULTIMATE, Layers, named
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network

_SLOPE = 0.1  # of the surrogate inside the range, where the score is flat
_OPENOOD_DIVISOR = 50.0  # by which OpenOOD divides its deviations


class Gram(OutputsDetector):
    """Minus the total deviation of the feature maps' Gram matrices from their class's range, <= 0.

    Source: Sastry and Oore 2020: for each layer and power p, `G = (F^p F^pT)^(1/p)` of the map F
    `(C, pixels)`. Each value is compared with its smallest and largest on training images;
    deviations are divided by the layer's mean deviation on held-out images and summed. As in the
    authors' code, G is summed over rows before the root, and classes are the *predicted* ones
    (`classes="labels"` takes the labels when fitting, as pytorch-ood does). A class that the
    network predicts for no image gets the range of all classes together, with a warning. The
    held-out images are a fixed tenth of the loader's, chosen by their pixels. The deviations of a
    layer where no held-out image deviates are divided by 1.

    OpenOOD's definition (v1.5) differs, and so do its ranks: `definition="openood"`. There a class,
    layer and power has *one* range, over all its images by label and over all channels; what is
    compared with it is the image's *sum* over channels, in the range of the predicted class; no
    image is held out and no layer weighed; the sum of deviations is divided by 50, and it is the
    score itself, >= 0, not its negative. OpenOOD reads five maps of its ResNets: after the first
    convolution with its BatchNorm and ReLU, and after each of the four stages; name them in
    `layers` for networks that do not do so themselves.

    Numerics: the OOD-attack paper, App. H.2: float64 (float32 where the device has no float64), and
    roots whose gradient is zero, not infinite, where the Gram matrix is zero. The score is flat
    inside the range, so the surrogate also rises there, from the nearer end inwards, by at most a
    twentieth for each value.

    Args:
        net: classifier.
        layers: names of submodules with maps `(N, C, H, W)`; "all" means the layers that the
            network itself names.
        powers: p, whole numbers >= 1.
        classes: which class an image is fitted to; of OpenOOD's definition, always its label.
        held_out: the share of images that estimates the mean deviations, in (0, 1).
        definition: "authors" or "openood", as above.
    """

    @typed
    def __init__(
        self,
        net: Network,
        layers: Layers = "all",
        powers: Sequence[int] = (1, 2, 3, 4, 5),
        *,
        classes: Literal["predicted", "labels"] = "predicted",
        held_out: float = 0.1,
        definition: Literal["authors", "openood"] = "authors",
    ) -> None:
        names = named(net, layers)
        if PENULTIMATE in names:
            raise UserError(
                "layers: 'penultimate' has no pixels to take a Gram matrix over; "
                "name layers with maps"
            )
        super().__init__(net, names)
        self.powers = _whole_numbers(powers)
        if classes not in ("predicted", "labels"):
            raise UserError(f"classes: expected 'predicted' or 'labels', got {classes!r}")
        if not 0 < held_out < 1:
            raise UserError(f"held_out: expected a number in (0, 1), got {held_out}")
        if definition not in ("authors", "openood"):
            raise UserError(f"definition: expected 'authors' or 'openood', got {definition!r}")
        self.of_openood = definition == "openood"
        self.classes = "labels" if self.of_openood else classes
        self.held_out = held_out
        self.declare("low", "high", "expected")

    def learn(self) -> Rounds:
        """Find each class's range by one pass, mean deviations of held-out images by a second."""
        yield from self._learn_ranges()
        if self.of_openood:
            divisors = self.learned("low").new_full((len(self.layers),), _OPENOOD_DIVISOR)
            self.keep_exactly(expected=divisors)
            return
        deviations = Average()
        yield [self.reading(deviations, self._held_out_deviations)]
        # Layers without deviations are divided by 1.
        means = torch.zeros(len(self.layers))  # where no image was held out
        if deviations.count:
            means = deviations.mean
        self.keep_exactly(expected=torch.where(means > 0, means, 1.0))

    def _learn_ranges(self) -> Rounds:
        """Find each class's range.

        In a generator of its own: the statistic is gone before the next pass, which so holds the
        ranges once (300 MiB for the four stages of a ResNet-50 and 1,000 classes) and not thrice.
        """
        extremes = ClassExtremes(self.num_classes)
        yield [self.reading(extremes, self._range_values)]
        if self.classes == "labels":
            require_all(extremes.counts)
        low, high = _without_gaps(extremes)
        if self.of_openood:
            low = low.chunk(2, dim=1)[0]  # (K, layers * powers), the minima over channels
            high = high.chunk(2, dim=1)[1]  # the maxima
        self.keep_exactly(low=low, high=high)

    def keep_exactly(self, **learned: Tensor) -> None:
        """Store what was learned in its own precision.

        A range that is rounded to float32 may not include its own end points.
        """
        for name, value in learned.items():
            setattr(self, name, value.detach().clone())

    def score(self, out: Outputs) -> Tensor:
        """Return minus the total deviation; in OpenOOD's definition, the deviation itself."""
        return self._sign * self._total_deviation(out, slope=0.0).float()

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the score with a slope inside the range, where it is flat."""
        return self._sign * self._total_deviation(out, slope=_SLOPE)

    def attack_surface(self) -> AttackSurface:
        """Return the sloped score, then the log-odds of the class that chooses the range.

        Beyond an end near zero, a difference as small as bfloat16's rounding counts for thousands.
        """
        return AttackSurface((self.surrogate, self.confidence), needs_float32=True)

    @property
    def _sign(self) -> int:
        return 1 if self.of_openood else -1

    def _is_held_out(self, images: Tensor) -> Tensor:
        return image_keys(images) % 1_000_000 < self.held_out * 1_000_000

    def _range_values(self, seen: SeenBatch) -> tuple[Tensor, Tensor]:
        """Return the values `(n, D)` and classes `(n,)` of the images that are not held out."""
        if self.of_openood:
            return self._channel_extremes(seen.out), seen.classes(self.num_classes)
        chosen = ~self._is_held_out(seen.images)
        if self.classes == "predicted":
            labels = seen.out.logits.argmax(1)
        else:
            labels = seen.classes(self.num_classes)
        values = torch.cat(self._grams(seen.out), dim=1)  # (N, D)
        return values[chosen], labels[chosen]

    def _channel_extremes(self, out: Outputs) -> Tensor:
        """Return the smallest value over channels of each layer and power, then the largest.

        Of both, the extremes over images are taken: the first half of the result's columns is
        needed for its minima alone, the second for its maxima. The shape is `(N, 2 * layers *
        powers)`.
        """
        by_channel = [self._by_power(gram) for gram in self._grams(out)]
        low = [values.amin(2) for values in by_channel]  # (N, powers) each
        high = [values.amax(2) for values in by_channel]
        return torch.cat([*low, *high], dim=1)

    def get_extra_state(self) -> dict[str, list[str]]:
        """Return what else a state depends on: the layers, and a definition by OpenOOD."""
        state = super().get_extra_state()
        if self.of_openood:
            state["definition"] = ["openood"]
        return state

    def _held_out_deviations(self, seen: SeenBatch) -> tuple[Tensor]:
        chosen = self._is_held_out(seen.images)
        return (self._deviations(seen.out, slope=0.0)[chosen],)

    def _total_deviation(self, out: Outputs, slope: float) -> Tensor:
        """Return the sum `(N,)` of the layers' deviations, each relative to its expected one."""
        expected = self.learned("expected").to(out.logits.device)
        return (self._deviations(out, slope) / expected).sum(1)

    def _deviations(self, out: Outputs, slope: float) -> Tensor:
        """Return each layer's deviation from the range of the predicted class, `(N, L)`."""
        grams = self._grams(out)
        if self.of_openood:
            grams = [self._summed(gram) for gram in grams]
        values = torch.cat(grams, dim=1)  # (N, D)
        predicted = out.logits.argmax(1)  # (N,)
        # Each image's range is that of its predicted class, (N, D).
        low = self.learned("low")[predicted].to(values)
        high = self.learned("high")[predicted].to(values)
        below = F.relu(low - values) / (low + 1e-6).abs()
        above = F.relu(values - high) / (high + 1e-6).abs()
        deviations = below + above
        if slope:
            # Relative to the range's width. Relative to its ends, which may be zero, it would
            # outweigh the deviations outside the range.
            inside = F.relu(torch.minimum(values - low, high - values)) / (high - low + 1e-6)
            deviations = deviations - slope * inside
        sizes = [gram.shape[1] for gram in grams]
        by_layer = torch.split(deviations, sizes, dim=1)
        return torch.stack([layer.sum(1) for layer in by_layer], dim=1)

    def _summed(self, gram: Tensor) -> Tensor:
        """Return the sum over channels of each power, `(N, powers)`, of `(N, powers * C)`."""
        return self._by_power(gram).sum(2)

    def _by_power(self, gram: Tensor) -> Tensor:
        """Return a layer's values `(N, powers, C)`, of `(N, powers * C)`."""
        return gram.view(len(gram), len(self.powers), gram.shape[1] // len(self.powers))

    def _grams(self, out: Outputs) -> list[Tensor]:
        """Return each layer's row sums of Gram matrices, all powers, `(N, powers * C)`."""
        grams = []
        for layer in self.layers:
            maps = out.maps[layer].flatten(2)  # (N, C, pixels)
            has_float64 = maps.device.type != "mps"
            maps = maps.to(torch.float64 if has_float64 else torch.float32)
            grams.append(torch.cat([_row_sums(maps, power) for power in self.powers], dim=1))
        return grams


def _whole_numbers(powers: Sequence[int]) -> tuple[int, ...]:
    """Return the powers.

    Raises: `UserError` unless there are some and each is a whole number >= 1.
    """
    if not isinstance(powers, list | tuple) or not powers:
        raise UserError(f"powers: expected whole numbers >= 1, got {powers!r}")
    for power in powers:
        if isinstance(power, bool) or not isinstance(power, int) or power < 1:
            raise UserError(f"powers: expected whole numbers >= 1, got {list(powers)}")
    return tuple(powers)


def _without_gaps(extremes: ClassExtremes) -> tuple[Tensor, Tensor]:
    """Return the ranges `(K, D)`, those of all classes together for a class without images."""
    seen = extremes.counts > 0  # (K,)
    missing = (~seen).nonzero().flatten().tolist()
    if not missing:
        return extremes.low, extremes.high
    shown = ", ".join(map(str, missing[:5]))
    if len(missing) > 5:
        shown += ", ..."
    warnings.warn(
        f"Gram: the network predicts class {shown} for no image of the loader that ranges are "
        "learned from; the range of all classes together stands in (fit on more images, or give "
        "classes: labels)",
        stacklevel=2,
    )
    low = torch.where(seen[:, None], extremes.low, extremes.low.amin(0))
    high = torch.where(seen[:, None], extremes.high, extremes.high.amax(0))
    return low, high


def _row_sums(maps: Tensor, power: int) -> Tensor:
    """Return `(row sums of F^p F^pT)^(1/p)` with the sums' signs, `(N, C)`.

    Args:
        maps: `(N, C, pixels)`.
        power: p.
    """
    raised = maps**power
    sums = (raised * raised.sum(1, keepdim=True)).sum(2)  # the matrix itself is never made
    size = sums.abs()
    positive = size > torch.finfo(size.dtype).tiny
    # Selected before the root, too: the gradient of an unselected infinite slope is NaN, not zero.
    root = torch.where(positive, size, 1.0) ** (1 / power)
    return torch.where(positive, sums.sign() * root, 0.0)
