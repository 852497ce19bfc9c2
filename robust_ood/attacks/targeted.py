"""Attacks that try one class after another, where one objective would settle for the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks.apply import Candidate, Settings
from robust_ood.attacks.budget import check_count
from robust_ood.attacks.objectives import Direction, classifiers
from robust_ood.attacks.pgd import PGD, proposed
from robust_ood.attacks.precision import computed_in, resolve
from robust_ood.deprecation import warn_renamed
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.perturb import JudgedObjective, Objective


@dataclass(frozen=True, init=False)
class Targeted:
    """Settings of an attack towards each of the likeliest classes in turn.

    Images are `(N, C, H, W)` in [0, 1]. Source: multi-targeted, as APGD-T of AutoAttack (Croce and
    Hein 2020). Classifiers: the margin of the true class over the target is lowered. Detectors: the
    target's log-odds are raised, which makes outliers look like one of that class, and inliers,
    whose own class is left out, cross the boundary where the network is undecided.

    Args:
        attack: region, steps, rule and starts of the attack on each class; one restart a class.
        classes: how many classes are tried, the likeliest on the clean image first.
        search: the former name of `attack`.
    """

    attack: PGD
    classes: int
    keeps_clean = True

    @typed
    def __init__(
        self, attack: PGD | None = None, classes: int = 9, *, search: PGD | None = None
    ) -> None:
        if search is not None:
            warn_renamed("Targeted(search=...)", "Targeted(attack=...)")
            attack = search
        if attack is None:
            raise UserError("attack: not given; expected a PGD")
        check_count("classes", classes)
        object.__setattr__(self, "attack", attack)
        object.__setattr__(self, "classes", classes)

    @property
    def search(self) -> PGD:
        """The former name of `attack`."""
        warn_renamed("Targeted.search", "Targeted.attack")
        return self.attack

    def settings(self) -> Settings:
        """Return the attack's settings; each class counts as a restart."""
        settings = self.attack.settings()
        settings["restarts"] *= self.classes
        return settings

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield a candidate for each class."""
        networks = classifiers(detector, "targeted")
        read = nn.ModuleList(networks)  # what is differentiated, whatever the detector needs
        with torch.no_grad():
            probabilities = [losses.wide(logits_of(net(images))).softmax(1) for net in networks]
        likeliest = torch.stack(probabilities).sum(0).argsort(1, descending=True)  # (N, K)
        if direction == 1:
            likeliest = likeliest[:, 1:]  # without the image's own class
        for rank in range(min(self.classes, likeliest.shape[1])):
            target = likeliest[:, rank]

            def objective(x: Tensor, target: Tensor = target) -> Tensor:
                return -torch.stack(
                    [losses.log_odds(logits_of(net(x)), target) for net in networks]
                ).sum(0)

            def true_score(x: Tensor) -> Tensor:
                scores: Tensor = detector(x)
                return direction * scores

            yield from self._candidates(objective, true_score, images, indices, rank, read)

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield a candidate for each class other than the true one."""
        with torch.no_grad():
            wrong_logits = logits_of(net(images)).scatter(1, labels[:, None], -torch.inf)  # (N, K)
            likeliest = wrong_logits.argsort(1, descending=True)[:, :-1]  # (N, K - 1)
        for rank in range(min(self.classes, likeliest.shape[1])):
            target = likeliest[:, rank : rank + 1]  # (N, 1)

            def objective(x: Tensor, target: Tensor = target) -> tuple[Tensor, Tensor]:
                logits = losses.wide(logits_of(net(x)))
                lead = logits.gather(1, labels[:, None]) - logits.gather(1, target)  # (N, 1)
                return lead[:, 0], losses.margin(logits, labels)

            yield from self._candidates(objective, None, images, indices, rank, net)

    def _candidates(
        self,
        objective: Objective | JudgedObjective,
        judge: Objective | None,
        images: Tensor,
        indices: Tensor,
        rank: int,
        attacked: nn.Module,
    ) -> Iterator[Candidate]:
        draws = self.attack.draws(indices)
        precision = resolve(self.attack.precision, images, attacked)
        minima = self.attack.at_images(indices).run(
            computed_in(precision, objective),
            images,
            lambda restart: draws(rank + restart * self.classes),
            judge,
        )
        yield from proposed(minima, "targeted", precision, judged=judge is not None)
