"""Detectors made of detectors, and of several networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface, Surrogate, surface_of
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch, together
from robust_ood.detectors.fitting.statistics import ClassMoments
from robust_ood.detectors.logarithms import minus_log_entropy, tempered_log_odds
from robust_ood.detectors.wrapper import Wrapper
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models import find_head
from robust_ood.models.heads import require_classes
from robust_ood.models.wrap import as_network

# The columns of a `Standardize`'s mean and standard deviation.
_SCORE = 0
_SURROGATE = 1


class Standardize(Wrapper):
    """Another detector's scores, with mean 0 and standard deviation 1 on in-distribution images.

    The published values are shifted and scaled, and unbounded where they are. The surrogate is
    the wrapped one, standardised by its own mean and deviation, so that no member of a `Mean`
    dominates an attacker's gradient because its surrogate has a larger scale.

    Args:
        detector: the wrapped detector; `fit` fits it first where it is not fitted yet.
    """

    @typed
    def __init__(self, detector: Detector) -> None:
        super().__init__(detector)
        self.declare("mean", "std")

    def learn(self) -> Rounds:
        """Fit the wrapped detector where it is not fitted, then find means and deviations.

        The latter take one pass.
        """
        # A fitted detector keeps what it has learned from other images.
        if not self.detector.fitted:
            yield from self.detector.learn()
        moments = ClassMoments(1)  # of all images together, as if there were one class
        # The pass calls the detector itself, which may be more than one network.
        yield [Pass(moments, self._read, self.detector, forward=False)]
        mean = moments.mean  # (2,): of the score, of the surrogate
        std = moments.overall.diagonal().clamp_min(0).sqrt()  # (2,)
        # Equal scores may differ in the last bits of their sums.
        if not (std > 1e-12 * mean.abs()).all():
            raise UserError(
                "loader: all its images have the same score; "
                "a standard deviation needs images that differ"
            )
        self.keep(mean=mean, std=std)

    def _read(self, seen: SeenBatch) -> tuple[Tensor, Tensor]:
        scores = self.detector.published_forward(seen.images)
        surrogates = self.detector.surrogate(seen.images)
        values = torch.stack([scores, surrogates], dim=1)  # (N, 2)
        one_class = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        return values, one_class

    def forward(self, images: Tensor) -> Tensor:
        """Return standardised scores `(N,)`."""
        return self._standardised(self.detector.published_forward(images), _SCORE)

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the standardised surrogate `(N,)`."""
        return self._standardised(self.detector.surrogate(images), _SURROGATE)

    def attack_surface(self) -> AttackSurface:
        """Return the standardised surrogate, then the wrapped detector's others.

        Without the movement of the wrapped detector, mean and deviation stay what they are.
        """
        wrapped = surface_of(self.detector)
        unmoved = None
        if wrapped.unmoved is not None:
            # Only the first stands for the surrogate, whose mean and deviation are known.
            first, *others = wrapped.unmoved
            unmoved = (lambda images: self._standardised(first(images), _SURROGATE), *others)
        return AttackSurface((self.surrogate, *wrapped.surrogates[1:]), wrapped.exact, unmoved)

    def _standardised(self, values: Tensor, column: int) -> Tensor:
        mean = self.learned("mean")[column].to(values)
        std = self.learned("std")[column].to(values)
        return (values - mean) / std


class Mean(Detector):
    """The mean of several detectors' published values, unbounded where one of them is.

    Source: Fort Eq. 8. Scores of different kinds have different scales; wrap them in `Standardize`.

    Args:
        detectors: one or more detectors, of one network or of several.
        labels: what tables call each of them; by default their numbers, from 1.
    """

    @typed
    def __init__(self, detectors: Iterable[Detector], labels: Sequence[str] | None = None) -> None:
        super().__init__()
        members = list(detectors)
        for member in members:
            if not isinstance(member, Detector):
                raise UserError(f"detectors: expected detectors, got a {type(member).__name__}")
        self.detectors = nn.ModuleList(members)
        if not len(self.detectors):
            raise UserError("detectors: none given to average")
        if labels is None:
            labels = [str(number) for number in range(1, len(members) + 1)]
        if len(labels) != len(members) or len(set(labels)) < len(labels):
            raise UserError(
                f"labels: expected {len(members)} different ones, got {', '.join(labels) or 'none'}"
            )
        self.labels = tuple(labels)

    def learn(self) -> Rounds:
        """Fit all members together."""
        return together([member.learn() for member in self.inside])

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean score `(N,)`."""
        return torch.stack([member.published_forward(images) for member in self.inside]).mean(0)

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the mean surrogate `(N,)`."""
        return torch.stack([member.surrogate(images) for member in self.inside]).mean(0)

    def attack_surface(self) -> AttackSurface:
        """Return the mean of the surrogates, then the mean of the scores.

        A mean of surrogates orders images as the score does for one member only.
        """
        surfaces = [surface_of(member) for member in self.inside]
        exact = len(surfaces) == 1 and surfaces[0].exact
        unmoved = None
        if any(surface.unmoved is not None for surface in surfaces):
            # Members that move nothing take part with their own surrogates.
            firsts = []
            for surface in surfaces:
                stand_ins = surface.unmoved or surface.surrogates
                firsts.append(stand_ins[0])
            unmoved = (_mean_of(firsts),)
        return AttackSurface((self.surrogate, self), exact, unmoved)


def _mean_of(surrogates: Sequence[Surrogate]) -> Surrogate:
    def mean(images: Tensor) -> Tensor:
        return torch.stack([surrogate(images) for surrogate in surrogates]).mean(0)

    return mean


class Resized(nn.Module):
    """A network that resizes its images bilinearly to its own resolution.

    Networks of different resolutions can then read the same images.

    Args:
        net: classifier of images `(N, C, size, size)`.
        size: height and width in pixels that it expects.
    """

    @typed
    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"size: expected a number of pixels >= 1, got {size}")
        self.net = net
        self.size = size

    @property
    def head(self) -> nn.Linear:
        """The network's last linear layer."""
        return find_head(self.net)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)`."""
        size = (self.size, self.size)
        resized = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        logits: Tensor = logits_of(self.net(resized))
        return logits


class DeepEnsemble(Detector):
    """A score of several networks' mean softmax: its entropy, or its largest value.

    Source: Lakshminarayanan et al. 2017; the OOD-attack paper, App. F (entropy). The published
    values are minus the entropy, in [-log K, 0], and the largest probability, in (1/K, 1];
    `published` gives them. The scores are in the forms of `Entropy` and `MSP`, unbounded, which
    order images alike and do not tie where the softmax saturates.

    Args:
        networks: classifiers of the same classes.
        score: "entropy" or "msp".
        sizes: the resolution that each network expects, in pixels; None for the images' own. For
            instance `[32, 224]`.
    """

    @typed
    def __init__(
        self,
        networks: Iterable[nn.Module],
        score: Literal["entropy", "msp"] = "entropy",
        sizes: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        nets = list(networks)
        if sizes is None:
            sizes = [None] * len(nets)
        if not nets or len(sizes) != len(nets):
            raise UserError(
                "networks: expected one or more, with one size (or None) each, "
                f"got {len(nets)} networks and {len(sizes)} sizes"
            )
        if score not in ("entropy", "msp"):
            raise UserError(f"score: expected 'entropy' or 'msp', got {score!r}")
        nets = [as_network(net, "networks") for net in nets]
        if len({require_classes(net, type(self).__name__) for net in nets}) > 1:
            raise UserError("networks: they have different numbers of classes")
        self.members = nn.ModuleList()
        for net, size in zip(nets, sizes, strict=True):
            member = net
            if size is not None:
                member = Resized(net, size)
            self.members.append(member)
        self.kind = score

    def forward(self, images: Tensor) -> Tensor:
        """Return minus the entropy's logarithm, or the log-odds of the largest value, `(N,)`."""
        log_p = self._log_mean(images)
        if self.kind == "entropy":
            return minus_log_entropy(log_p)
        return tempered_log_odds(log_p)

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the published values `(N,)`: minus the entropy, or the largest probability."""
        log_p = self._log_mean(images)
        if self.kind == "entropy":
            return -losses.entropy(log_p)
        return log_p.amax(1).exp()

    def attack_surface(self) -> AttackSurface:
        """Return the score, then for entropy the log-odds.

        The log-odds have a slope where the networks are undecided.
        """
        if self.kind == "entropy":
            return AttackSurface((self.surrogate, self._log_odds), exact=True)
        return AttackSurface((self.surrogate,), exact=True)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifiers, with their resizes."""
        return tuple(self.members)

    def _log_odds(self, images: Tensor) -> Tensor:
        return losses.log_odds(self._log_mean(images))

    def _log_mean(self, images: Tensor) -> Tensor:
        """Return the logarithm of the mean softmax `(N, K)`; its own softmax is that mean."""
        # log(mean of exp(log p)) over the networks
        logs = []
        for net in self.members:
            log_p = F.log_softmax(losses.wide(logits_of(net(images))), dim=1)
            logs.append(losses.finite_logs(log_p))  # the gradient of logsumexp is NaN at -inf
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))
