"""Detectors made of detectors, and of several networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors.attack_surface import AttackSurface, surface_of
from robust_ood.detectors.contract import Detector, Wrapper
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch, together
from robust_ood.detectors.fitting.statistics import ClassMoments
from robust_ood.errors import UserError
from robust_ood.models import find_head


class Standardize(Wrapper):
    """Another detector's scores, shifted and scaled to mean 0 and standard deviation 1 on
    in-distribution images.

    The surrogate is the wrapped one, standardised by its own mean and deviation, so that no member
    of a `Mean` drowns the others in an attacker's gradient because its surrogate has another scale.

    Args:
        detector: the wrapped detector; `fit` fits it first where it is not fitted yet.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector)
        self.declare("mean", "std")

    def learn(self) -> Rounds:
        """Fit the wrapped detector where it is not fitted, then find means and deviations by one
        pass.
        """
        if not self.detector.fitted:
            yield from self.detector.learn()
        moments = ClassMoments(1)
        yield [Pass(moments, self._read, self.detector, forward=False)]
        mean, std = (
            moments.mean,
            moments.overall.diagonal().clamp_min(0).sqrt(),
        )  # (2,): of the score, of the surrogate
        if not (std > 1e-12 * mean.abs()).all():
            raise UserError(
                "loader: all its images have the same score; a standard deviation needs images that differ"
            )
        self.keep(mean=mean, std=std)

    def _read(self, seen: SeenBatch) -> tuple[Tensor, Tensor]:
        both = torch.stack(
            [self.detector(seen.images), self.detector.surrogate(seen.images)], dim=1
        )  # (N, 2)
        return both, torch.zeros(len(both), dtype=torch.int64, device=both.device)

    def forward(self, images: Tensor) -> Tensor:
        """Return standardised scores `(N,)`."""
        return self._scaled(self.detector(images), 0)

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the standardised surrogate `(N,)`."""
        return self._scaled(self.detector.surrogate(images), 1)

    def attack_surface(self) -> AttackSurface:
        """Return the standardised surrogate, then the wrapped detector's others.

        Without the movement of the wrapped detector, mean and deviation stay what they are.
        """
        wrapped = surface_of(self.detector)
        unmoved = None
        if wrapped.unmoved is not None:
            first, *others = wrapped.unmoved
            unmoved = (lambda images: self._scaled(first(images), 1), *others)
        return AttackSurface((self.surrogate, *wrapped.surrogates[1:]), wrapped.exact, unmoved)

    def _scaled(self, values: Tensor, place: int) -> Tensor:
        mean, std = (self.learned(name)[place].to(values) for name in ("mean", "std"))
        return (values - mean) / std


class Mean(Detector):
    """The mean of several detectors' scores, unbounded where one of them is.

    Source: Fort Eq. 8. Scores of different kinds have different scales; wrap them in `Standardize`.

    Args:
        detectors: one or more detectors, of one network or of several.
    """

    def __init__(self, detectors: Iterable[Detector]) -> None:
        super().__init__()
        members = list(detectors)
        for member in members:
            if not isinstance(member, Detector):
                raise UserError(f"detectors: expected detectors, got a {type(member).__name__}")
        self.detectors = nn.ModuleList(members)
        if not len(self.detectors):
            raise UserError("detectors: none given to average")

    def learn(self) -> Rounds:
        """Fit all members together."""
        return together([member.learn() for member in self.inside])

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean score `(N,)`."""
        return torch.stack([member(images) for member in self.inside]).mean(0)

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
            firsts = [(surface.unmoved or surface.surrogates)[0] for surface in surfaces]
            unmoved = (lambda images: torch.stack([first(images) for first in firsts]).mean(0),)
        return AttackSurface((self.surrogate, self), exact, unmoved)


class Resized(nn.Module):
    """A network behind a bilinear resize of its images, so that networks of different resolutions
    see the same ones.

    Args:
        net: classifier of images `(N, C, size, size)`.
        size: height and width in pixels that it wants.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"size: {size} is not a number of pixels >= 1")
        self.net, self.size = net, size

    @property
    def head(self) -> nn.Linear:
        """The network's last linear layer."""
        return find_head(self.net)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        size = (self.size, self.size)
        logits: Tensor = self.net(
            F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        )
        return logits


class DeepEnsemble(Detector):
    """Of several networks' mean softmax, the entropy, negated, in [-log K, 0], or the largest
    value, in (1/K, 1].

    Source: Lakshminarayanan et al. 2017; the OOD-attack paper, App. F (entropy). Computed in
    logarithms, so that neither saturates; the surrogate of "msp" is the log-odds of the most
    probable class.

    Args:
        networks: classifiers of the same classes.
        score: "entropy" or "msp".
        sizes: the resolution that each network wants, in pixels, None for the images' own; for
            instance `[32, 224]`.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        score: Literal["entropy", "msp"] = "entropy",
        sizes: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__()
        chosen = list(networks)
        sizes = [None] * len(chosen) if sizes is None else sizes
        if not chosen or len(sizes) != len(chosen):
            raise UserError(
                f"networks: {len(chosen)} given with {len(sizes)} sizes; one size (or None) for each is wanted"
            )
        if score not in ("entropy", "msp"):
            raise UserError(f"score: {score!r} is neither 'entropy' nor 'msp'")
        if len({find_head(net).out_features for net in chosen}) > 1:
            raise UserError("networks: they have different numbers of classes")
        self.members = nn.ModuleList(
            net if size is None else Resized(net, size)
            for net, size in zip(chosen, sizes, strict=True)
        )
        self.kind = score

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, in [-log K, 0] for entropy and (1/K, 1] for msp."""
        log_p = self._log_mean(images)
        return -losses.entropy(log_p) if self.kind == "entropy" else log_p.amax(1).exp()

    def surrogate(self, images: Tensor) -> Tensor:
        """Return minus the entropy, or the log-odds of the most probable class."""
        return (
            -losses.entropy(self._log_mean(images))
            if self.kind == "entropy"
            else self._log_odds(images)
        )

    def attack_surface(self) -> AttackSurface:
        """Return the score's stand-in, then for entropy the log-odds.

        The log-odds have a slope where the networks are undecided.
        """
        if self.kind == "entropy":
            return AttackSurface((self.surrogate, self._log_odds), exact=True)
        return AttackSurface((self.surrogate,), exact=True)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The classifiers, each behind its own resize."""
        return tuple(self.members)

    def _log_odds(self, images: Tensor) -> Tensor:
        return losses.log_odds(self._log_mean(images))

    def _log_mean(self, images: Tensor) -> Tensor:
        """Return the logarithm of the mean softmax `(N, K)`; its own softmax is that mean."""
        logs = []
        for net in self.members:
            log_p = F.log_softmax(losses.wide(net(images)), dim=1)
            logs.append(losses.finite_logs(log_p))  # the gradient of logsumexp is NaN at -inf
        return torch.stack(logs).logsumexp(0) - math.log(len(logs))
