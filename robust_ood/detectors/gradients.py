"""Sizes of gradients: of the head's weights, in closed form, and of the density, of the image."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector, OutputsDetector, full_precision
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network, as_network
from robust_ood.modes import differentiating, ordinary
from robust_ood.randomness import generator

# The weight of the log-odds in the surrogate. It is small, so that the score decides wherever it
# has a gradient.
_SHARE = 0.05


class _HeadGradient(OutputsDetector):
    """The size of the head's gradient, for which the feature and the softmax give a factor each.

    The second factor is constant once the softmax saturates in float32. Attackers also get the
    log-odds of the predicted class, whose gradients do not vanish there.
    """

    needs = "head"
    temperature = 1.0

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the log of the score plus a small share of the predicted class's log-odds."""
        logits = losses.wide(out.logits) / self.temperature
        log_odds = losses.log_odds(logits)
        product = self._feature_size(out) * self._peakedness(out)
        # The product can be 0, whose logarithm is infinite.
        return product.clamp_min(1e-30).log() + _SHARE * log_odds

    def attack_surface(self) -> AttackSurface:
        """Return the surrogate, the score itself, then the log-odds of the predicted class."""
        return AttackSurface((self.surrogate, self, self.confidence))

    @abstractmethod
    def _feature_size(self, out: Outputs) -> Tensor:
        """Return the feature's factor `(N,)`."""

    @abstractmethod
    def _peakedness(self, out: Outputs) -> Tensor:
        """Return the softmax's factor `(N,)`, 0 where it is uniform."""


class GradNorm(_HeadGradient):
    """The L1 norm of the head's weight gradient of the divergence from uniform to softmax, >= 0.

    Source: Huang et al. 2021, Eq. 3 and 5: for a linear head the gradient is `(p - 1/K) f' / T`, so
    the norm is the product `|f|_1 |p - 1/K|_1 / T`, and no backward pass is needed. The authors'
    code and OpenOOD sum over classes where the paper averages, and so give K times the norm
    (`reference`).

    Args:
        net: classifier with a linear head.
        temperature: T, > 0.
        reference: K times the norm, as the public codes give. The order of images is the same.
    """

    @typed
    def __init__(self, net: Network, temperature: float = 1.0, *, reference: bool = False) -> None:
        super().__init__(net)
        if not temperature > 0:
            raise UserError(f"temperature: expected a number > 0, got {temperature}")
        self.temperature = temperature
        self.reference = reference

    def score(self, out: Outputs) -> Tensor:
        """Return the norm of each image's gradient."""
        factor = 1
        if self.reference:
            factor = out.logits.shape[1]
        return self._feature_size(out) * self._peakedness(out) * factor / self.temperature

    def _feature_size(self, out: Outputs) -> Tensor:
        return losses.wide(out.features).abs().sum(1)

    def _peakedness(self, out: Outputs) -> Tensor:
        """Return the L1 distance `(N,)` of the softmax from uniform."""
        p = F.softmax(losses.wide(out.logits) / self.temperature, dim=1)  # (N, K)
        return (p - 1 / p.shape[1]).abs().sum(1)


class GradUncertainty(_HeadGradient):
    """The squared L2 norm of the head's gradient of a loss with all labels at once, >= 0.

    The loss is the binary cross-entropy of the softmax with a label of ones; its gradient by the
    logits is `K p - 1`, so that the squared norm over the head's weights and bias is `|K p - 1|^2
    (|f|^2 + 1)`, and no backward pass is needed.

    Source: Lee and AlRegib 2020 (gradients as a measure of uncertainty), as pytorch-ood reads it,
    with the head's parameters alone (its `param_filter`). The paper trains a classifier on such
    norms of every layer, with outliers; here nothing is trained.

    Args:
        net: classifier with a linear head.
    """

    @typed
    def __init__(self, net: Network) -> None:
        super().__init__(net)

    def score(self, out: Outputs) -> Tensor:
        """Return the squared norm of each image's gradient."""
        return self._feature_size(out) * self._peakedness(out)

    def _feature_size(self, out: Outputs) -> Tensor:
        bias = 0 if out.head.bias is None else 1
        return losses.wide(out.features).square().sum(1) + bias

    def _peakedness(self, out: Outputs) -> Tensor:
        p = F.softmax(losses.wide(out.logits), dim=1)  # (N, K)
        return (p.shape[1] * p - 1).square().sum(1)


class GradientNorm(Detector):
    """Minus the L2 norm of the density's gradient, `-|d log p(x) / dx|_2`, <= 0.

    `log p(x) = logsumexp f(x)`, as of an energy-based classifier. Source: JEM (Grathwohl et al.
    2020, Sec. 5.3, "approximate mass"); OOD-attack paper, App. J. The gradient is of pixels in [0,
    1], twice that of the published code's [-1, 1]; the order of images is the same.

    An attack differentiates the score, and so the network twice. The logits of a ReLU network are
    piecewise linear: only the weights of the softmax have a second derivative, and none where it is
    saturated. Attackers therefore also get log p itself, and the norm as `probes` finite
    differences see it, which feels the kinks between the pieces; the sanity checks report where the
    gradient is exactly zero. Second derivatives in bfloat16 are mostly rounding, so attacks are in
    float32.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`; a plain function, too.
        reach: standard deviation of the finite differences, in pixel fractions, > 0; of attacks
            only, the score has none.
        probes: how many directions they take, >= 1.
    """

    @typed
    def __init__(self, net: Network, reach: float = 0.02, probes: int = 4) -> None:
        super().__init__()
        if not reach > 0:
            raise UserError(f"reach: expected a number > 0, got {reach}")
        if probes < 1:
            raise UserError(f"probes: expected a whole number >= 1, got {probes}")
        self.net = as_network(net)
        self.reach = reach
        self.probes = probes

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)`.

        Differentiable where gradients are enabled and the images require one.
        """
        attacked = torch.is_grad_enabled() and images.requires_grad
        with differentiating(), full_precision(images):
            leaf = images if attacked else ordinary(images).requires_grad_()
            log_p = self.log_density(leaf)
            (gradient,) = torch.autograd.grad(log_p.sum(), leaf, create_graph=attacked)
            score: Tensor = -torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        if not attacked:
            return score
        # Of a network without second derivatives the gradient is a constant: zero, not an error.
        attached: Tensor = score + 0 * log_p
        return attached

    def log_density(self, images: Tensor) -> Tensor:
        """Return `logsumexp f(x)`, `(N,)`, of images `(N, C, H, W)`."""
        return losses.wide(logits_of(self.net(images))).logsumexp(1)

    def probed_norm(self, images: Tensor) -> Tensor:
        """Return minus the norm `(N,)` that finite differences of log p show.

        With u normal, the mean square of `(log p(x + r u) - log p(x)) / r` is the squared norm. The
        directions are fixed, and the same for all images.
        """
        draws = generator(0, "probes of the gradient norm", device=images.device)
        center = self.log_density(images)
        squares = torch.zeros_like(center)
        for _ in range(self.probes):
            direction = torch.randn(images.shape[1:], generator=draws, device=images.device)
            moved = images + self.reach * direction.to(images.dtype)
            squares = squares + ((self.log_density(moved) - center) / self.reach).square()
        mean = squares / self.probes
        return -(mean + torch.finfo(mean.dtype).tiny).sqrt()

    def attack_surface(self) -> AttackSurface:
        """Return the score itself, then log p, then the norm by finite differences."""
        surrogates = (self.surrogate, self.log_density, self.probed_norm)
        return AttackSurface(surrogates, exact=True, needs_float32=True)
