"""SCALE with a percentile of each image's own, found by a perturbation: AdaScale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.activations import share_of
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector, full_precision, widened
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch, Split
from robust_ood.detectors.fitting.statistics import Sample
from robust_ood.errors import UserError
from robust_ood.models import Outputs, outputs
from robust_ood.models.heads import require
from robust_ood.models.wrap import Network, as_network
from robust_ood.modes import differentiating, ordinary
from robust_ood.regions import Fraction

_SAMPLES = 5000
"""How many in-distribution images are kept, as in OpenOOD's configuration."""
_TOP = 0.05  # of the features, for the correction term (k1)
_TOP_SHIFTS = 0.01  # of the features, for the shifts (k2)
_LARGEST = 50.0  # exponent
_SMALLEST = 1e-12  # of a sum that divides


class AdaScale(Detector):
    """The free energy of features, or logits, scaled by a percentile of the image's own, unbounded.

    Source: Regmi 2025 (AdaScale), as in OpenOOD. The `pixels` share of an image's values on which
    its largest logit depends least is moved by `magnitude` times the sign of that logit's gradient.
    `Q = sum of the 5 % largest features, read after the step, + weight * sum of how far the 1 %
    largest moved`. With F the share of in-distribution images whose Q is at most the image's, the
    percentile is `lowest + (1 - F) (highest - lowest)`, and r the sum of all features over the sum
    of those above it. Variant A multiplies features by `exp(r)`, L multiplies logits by `r^2`.

    The percentile is constant almost everywhere. Attackers get F and the sum of the largest
    features interpolated, with the step held constant.

    Args:
        net: classifier with a linear head.
        variant: "A" or "L".
        lowest: percentile, in [0, 100), of the images with the largest Q; 60 to 95 in OpenOOD's
            search.
        highest: of those with the smallest, in [0, 100), >= `lowest`; 65 to 99 there.
        weight: of the shifts, >= 0.
        pixels: share of the image's values that are moved, in (0, 1].
        magnitude: of the step in pixel fractions, > 0. OpenOOD's is 0.5 in normalised inputs, which
            for standard deviations of 0.25 is 0.125.
    """

    @typed
    def __init__(
        self,
        net: Network,
        variant: Literal["A", "L"] = "A",
        lowest: float = 75.0,
        highest: float = 85.0,
        weight: float = 10.0,
        pixels: float = 0.05,
        magnitude: float | str = 0.125,
    ) -> None:
        super().__init__()
        self.net = as_network(net)
        require(self.net, "head", "AdaScale")
        if variant not in ("A", "L"):
            raise UserError(f"variant: expected 'A' or 'L', got {variant!r}")
        self.shares = (share_of(lowest, "lowest"), share_of(highest, "highest"))
        if self.shares[0] > self.shares[1]:
            raise UserError(f"lowest: expected at most highest ({highest}), got {lowest}")
        if not 0 <= weight < math.inf:
            raise UserError(f"weight: expected a number >= 0, got {weight}")
        if not 0 < pixels <= 1:
            raise UserError(f"pixels: expected a share in (0, 1], got {pixels}")
        self.magnitude = float(Fraction(magnitude, "magnitude"))
        if not self.magnitude > 0:
            raise UserError(f"magnitude: expected a number > 0, got {magnitude}")
        self.variant = variant
        self.weight = weight
        self.pixels = pixels
        self.declare("known")

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)

    @property
    def learns_from(self) -> Mapping[Split, str]:
        """In-distribution images that the network was not trained on, for F."""
        return {"validation": "its percentiles are fitted on training images"}

    def learn(self) -> Rounds:
        """Keep the Q of images, or of a sample of them, by one pass."""
        sample = Sample(_SAMPLES)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return self._quantity(seen.images)[1][:, None], image_keys(seen.images)

        yield [Pass(sample, read, self, forward=False, split="validation")]
        self.keep(known=sample.rows[:, 0].sort().values)

    def forward(self, images: Tensor) -> Tensor:
        """Return the energies `(N,)` of images `(N, C, H, W)`."""
        out, quantity = self._quantity(images)
        with full_precision(images):
            known = self.learned("known").to(quantity)
            below = torch.searchsorted(known, quantity.detach(), right=True)  # (N,)
            percentile = self._percentile(below.to(quantity) / len(known))
            size = out.features.shape[1]
            counts = (size - (size * percentile).round()).clamp_min(1)
            return self._energy(out, counts)

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the energies `(N,)` with everything interpolated that jumps."""
        out, quantity = self._quantity(images)
        with full_precision(images):
            known = self.learned("known").to(quantity)
            place = torch.searchsorted(known, quantity.detach()).clamp(1, max(len(known) - 1, 1))
            low = known[place - 1]
            high = known[place.clamp_max(len(known) - 1)]
            within = (quantity - low) / (high - low).clamp_min(_SMALLEST)
            # Beyond the known ones F stays 0 or 1, and the gradient that of the features.
            share = (place - 1 + within.clamp(0, 1)) / len(known)
            counts = out.features.shape[1] * (1 - self._percentile(share))
            return self._energy(out, counts.clamp_min(1))

    def unscaled(self, images: Tensor) -> Tensor:
        """Return the energies `(N,)` of unscaled logits."""
        return losses.wide(self.net(images)).logsumexp(1)

    def attack_surface(self) -> AttackSurface:
        """Return the interpolated score, the score, then the energy without scaling.

        Which values move hangs on the smallest gradients, so attacks are in float32.
        """
        return AttackSurface((self.surrogate, self, self.unscaled), needs_float32=True)

    def _percentile(self, share_below: Tensor) -> Tensor:
        lowest, highest = self.shares
        return lowest + (1 - share_below) * (highest - lowest)

    def _quantity(self, images: Tensor) -> tuple[Outputs, Tensor]:
        """Return the image's forward pass, and Q `(N,)`."""
        movement = self._movement(images)
        out = widened(outputs(self.net, images))
        moved = widened(outputs(self.net, images + movement))
        with full_precision(images):
            size = out.features.shape[1]
            order = out.features.detach().topk(max(int(size * _TOP), 1), dim=1).indices
            shifted = order[:, : max(int(size * _TOP_SHIFTS), 1)]  # the largest come first
            correction = moved.features.relu().gather(1, order).sum(1)
            shift = (out.features - moved.features).abs().gather(1, shifted).sum(1)
            return out, correction + self.weight * shift

    def _movement(self, images: Tensor) -> Tensor:
        """Return the step `(N, C, H, W)`, without gradient."""
        with differentiating():
            leaf = ordinary(images).requires_grad_()
            (gradient,) = torch.autograd.grad(self.net(leaf).amax(1).sum(), leaf)
        flat = gradient.flatten(1)
        count = max(int(flat.shape[1] * self.pixels), 1)
        chosen = flat.abs().topk(count, dim=1, largest=False).indices
        mask = torch.zeros_like(flat).scatter(1, chosen, 1.0)
        return (mask * flat.sign() * self.magnitude).view_as(images).detach()

    def _energy(self, out: Outputs, counts: Tensor) -> Tensor:
        """Return the energy `(N,)`, scaled by the `counts` (N,) largest features.

        A fraction of a feature counts in part.
        """
        positive = out.features.relu()
        cumulative = F.pad(positive.sort(1, descending=True).values.cumsum(1), (1, 0))  # from 0
        lower = counts.detach().floor().long().clamp_max(positive.shape[1])[:, None]  # (N, 1)
        part = (counts - lower[:, 0])[:, None]
        upper = (lower + 1).clamp_max(positive.shape[1])
        below = cumulative.gather(1, lower)
        largest = (below + part * (cumulative.gather(1, upper) - below))[:, 0]
        active = largest > _SMALLEST
        ratio = torch.where(active, positive.sum(1) / largest.clamp_min(_SMALLEST), 1.0)[:, None]
        if self.variant == "L":
            return (out.logits * ratio.square()).logsumexp(1)
        scaled = out.features * ratio.clamp_max(_LARGEST).exp()
        logits: Tensor = out.head(scaled.to(out.head.weight.dtype))
        return losses.wide(logits).logsumexp(1)
