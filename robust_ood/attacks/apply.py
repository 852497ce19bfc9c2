"""Attacks on detectors and on classifiers: they propose, the true score or margin chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks.objectives import Direction
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.inputs import accepted, check_labels, checked, logits_of, sample_indices
from robust_ood.models.wrap import Network, as_network
from robust_ood.modes import evaluating, ordinary
from robust_ood.regions import NORMS, Region, region_of


class Settings(TypedDict):
    """What a row of results says of an attack. steps: gradient steps or queries of one restart."""

    norm: str
    radius: float
    steps: int
    restarts: int


class Candidate(NamedTuple):
    """What an attack proposes.

    images: perturbed, `(N, C, H, W)`. member: the name of the attack. precision: of its gradients.
    at: positions `(n,)` of the images among those given, where they are `n` of them; None is all.
    """

    images: Tensor
    member: str
    precision: str | None = None
    at: Tensor | None = None


@runtime_checkable
class ScoreAttack(Protocol):
    """Anything that proposes perturbed images against a detector: `PGD`, `Square`, or a suite."""

    @property
    def keeps_clean(self) -> bool:
        """Whether an image that no candidate beats stays clean.

        Not so for attacks that never see the true score.
        """

    def settings(self) -> Settings:
        """Return what a row of results says of the attack."""

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield candidates for images `(N, C, H, W)` that make `direction * score` small.

        Indices `(N,)` key random draws.
        """


@runtime_checkable
class StopsEarly(Protocol):
    """An attack of several parts, which can leave alone what needs no more of them."""

    @property
    def stops_early(self) -> bool:
        """Whether it does; what wraps an attack asks the attack."""

    def until(self, enough: float) -> Attack:
        """Return the attack that leaves alone images whose score is beyond `enough`."""


@runtime_checkable
class LabelAttack(Protocol):
    """Anything that proposes perturbed images against a classifier."""

    def settings(self) -> Settings:
        """Return what a row of results says of the attack."""

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield candidates for images `(N, C, H, W)` whose labels `(N,)` the classifier misses."""


class Attack(ScoreAttack, LabelAttack, Protocol):
    """Anything that attacks both detectors and classifiers: what an evaluation takes."""


class Attacked(NamedTuple):
    """What an attack achieved.

    images: `(N, C, H, W)`, detached. values: `(N,)`, the true score, or the true class's margin.
    winners: `(N,)` positions in `members`, which names the attack that each image is from; "clean"
    is the image itself. precisions: those of the gradients, each once. attempts: how many images
    each member was run on.
    """

    images: Tensor
    values: Tensor
    winners: Tensor
    members: tuple[str, ...]
    precisions: tuple[str, ...]
    attempts: tuple[int, ...]

    def wins(self) -> dict[str, int]:
        """Return for how many images each member's candidate was kept."""
        counts = torch.bincount(self.winners, minlength=len(self.members)).tolist()
        return dict(zip(self.members, counts, strict=True))


def region_of_attack(attack: Any) -> Region:
    """Return where an attack searches: the ball of its norm and radius, or a region of its own.

    Raises: `UserError` for an attack that has neither.
    """
    settings = attack.settings()
    if settings["norm"] in NORMS:
        return region_of(settings["norm"], settings["radius"])
    inner = attack
    while not hasattr(inner, "region") and hasattr(inner, "attack"):
        inner = inner.attack
    region = getattr(inner, "region", None)
    if not isinstance(region, Region):
        raise UserError(f"attack: expected an Linf, L2 or L1 budget, got {settings['norm']}")
    return region


@typed
def lower_score(
    detector: Detector, inliers: Tensor, attack: ScoreAttack, *, indices: Tensor | None = None
) -> Tensor:
    """Return inliers perturbed so that they look out-of-distribution: the inlier attack.

    Args:
        detector: the detector under attack, attacked through everything it does.
        inliers: images `(N, C, H, W)` in [0, 1].
        attack: for instance `PGD(Linf(8/255), steps=20, restarts=2)`.
        indices: sample indices `(N,)` that key the random starts; 0..N-1 by default. Pass an
            image's index in its data set, and its result does not depend on the batch it came in.

    Returns:
        Images `(N, C, H, W)`, detached: for each, the one whose *true* score is lowest among the
        clean image and all that the attack proposed; a transferred attack's proposal as it is. The
        detector is in eval mode meanwhile; its flags and gradients are left as they were.
    """
    return attack_score(detector, inliers, attack, 1, indices=indices).images


@typed
def raise_score(
    detector: Detector, outliers: Tensor, attack: ScoreAttack, *, indices: Tensor | None = None
) -> Tensor:
    """Return outliers `(N, C, H, W)` that look in-distribution: the outlier attack.

    Otherwise as `lower_score`.
    """
    return attack_score(detector, outliers, attack, -1, indices=indices).images


@typed
def attack_score(
    detector: Detector,
    images: Tensor,
    attack: ScoreAttack,
    direction: Direction,
    *,
    indices: Tensor | None = None,
    enough: float | None = None,
) -> Attacked:
    """Return what an attack on a detector achieved: images, their true scores `(N,)`, and winners.

    Args:
        detector, images, attack, indices: as in `lower_score`.
        direction: +1 to lower scores, -1 to raise them.
        enough: a score beyond which it does not matter how far an image goes. A suite leaves
            such images alone. None attacks every image to the end.
    """
    if direction not in (1, -1) or isinstance(direction, bool):
        raise UserError(f"direction: {direction!r} is neither 1 (lower scores) nor -1 (raise them)")
    original = ordinary(checked(images))
    indices = sample_indices(indices, len(images))
    with evaluating(detector):
        images = accepted(_fast_layout(original), *(detector.networks or (detector,)))
        if enough is not None and isinstance(attack, StopsEarly) and attack.stops_early:
            attack = attack.until(enough)
        candidates: Iterable[Candidate] = attack.on_score(detector, images, direction, indices)
        if attack.keeps_clean:
            candidates = chain([Candidate(images, "clean")], candidates)
        attacked = worst(lambda x, _: direction * detector(x), candidates)
    return attacked._replace(
        images=_layout_of(original, attacked.images), values=direction * attacked.values
    )


@typed
def misclassify(
    net: Network,
    images: Tensor,
    labels: Tensor,
    attack: LabelAttack,
    *,
    indices: Tensor | None = None,
) -> Tensor:
    """Return images perturbed so that the classifier errs.

    Args:
        net: classifier, images to logits `(N, K)`.
        images: `(N, C, H, W)` in [0, 1].
        labels: true classes `(N,)`.
        attack: settings; `PGD(..., loss="margin")` says what is climbed.
        indices: as in `lower_score`.

    Returns:
        Images `(N, C, H, W)`, detached: for each, the one with the smallest margin of the true
        class, the clean image included.
    """
    return attack_labels(net, images, labels, attack, indices=indices).images


@typed
def attack_labels(
    net: Network,
    images: Tensor,
    labels: Tensor,
    attack: LabelAttack,
    *,
    indices: Tensor | None = None,
) -> Attacked:
    """Return what an attack on a classifier achieved: images, margins `(N,)`, and winners."""
    original = ordinary(checked(images))
    labels = ordinary(labels)
    indices = sample_indices(indices, len(images))
    net = as_network(net)

    def margin(moved: Tensor, at: Tensor | None) -> Tensor:
        logits = logits_of(net(moved))
        check_labels(labels, logits.shape[1])  # the clean images come first
        return losses.margin(logits, labels if at is None else labels[at])

    with evaluating(net):
        images = accepted(_fast_layout(original), net)
        proposals = attack.on_label(net, images, labels, indices)
        candidates = chain([Candidate(images, "clean")], proposals)
        attacked = worst(margin, candidates)
    return attacked._replace(images=_layout_of(original, attacked.images))


def _fast_layout(images: Tensor) -> Tensor:
    """Return the images in channels-last memory, in which convolutions are fastest."""
    return images.contiguous(memory_format=torch.channels_last)


def _layout_of(original: Tensor, attacked: Tensor) -> Tensor:
    """Return attacked images in the memory layout of the user's own."""
    return attacked.contiguous() if original.is_contiguous() else attacked


Value = Callable[[Tensor, Tensor | None], Tensor]
"""Images `(n, C, H, W)`, and their positions `(n,)` or None for all, to values `(n,)`."""


def worst(value: Value, candidates: Iterable[Candidate]) -> Attacked:
    """Return each image's candidate with the smallest value; of equals and of NaNs the first."""
    kept = Worst(value)
    for candidate in candidates:
        kept.see(candidate)
    return kept.result()


class Worst:
    """The worst candidate of each image so far, by a true value that attackers make small.

    Args:
        value: what is true of images.
    """

    def __init__(self, value: Value) -> None:
        self.value = value
        self.images: Tensor | None = None
        self.values = torch.empty(0)  # (N,)
        self._winners = torch.empty(0)  # (N,)
        self._attempts: dict[str, int] = {}  # by member
        self._precisions: list[str] = []

    @torch.no_grad()
    def see(self, candidate: Candidate) -> None:
        """Keep the images that are worse than those before; of equals and of NaNs the first.

        The first candidate holds all images.
        """
        images, member, precision, at = candidate
        if precision is not None and precision not in self._precisions:
            self._precisions.append(precision)
        self._attempts[member] = max(len(images), self._attempts.get(member, 0))
        values = self.value(images, at)
        winners = torch.full_like(values, list(self._attempts).index(member), dtype=torch.long)
        if self.images is None:
            self.images = images
            self.values = values
            self._winners = winners
            return
        old = (self.images, self.values, self._winners)
        if at is not None:
            old = (self.images[at], self.values[at], self._winners[at])
        lower = values < old[1]
        images = torch.where(lower.view(-1, 1, 1, 1), images, old[0])
        values = torch.where(lower, values, old[1])
        winners = torch.where(lower, winners, old[2])
        if at is not None:
            images = self.images.index_copy(0, at, images)
            values = self.values.index_copy(0, at, values)
            winners = self._winners.index_copy(0, at, winners)
        self.images = images
        self.values = values
        self._winners = winners

    def result(self) -> Attacked:
        """Return the worst of all candidates seen."""
        assert self.images is not None  # every attack proposes something
        return Attacked(
            self.images,
            self.values,
            self._winners,
            tuple(self._attempts),
            tuple(self._precisions),
            tuple(self._attempts.values()),
        )
