"""Attacks that try one class after another, where a single objective would settle for the
nearest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.attacks.apply import Candidate, Settings
from robust_ood.attacks.objectives import Direction, classifiers
from robust_ood.attacks.pgd import PGD, proposed
from robust_ood.attacks.precision import computed_in, resolve
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.perturb import JudgedObjective, Objective


@dataclass(frozen=True)
class Targeted:
    """Settings of an attack towards each of the likeliest classes in turn, on images `(N, C, H,
    W)`.

    Source: multi-targeted, as APGD-T of AutoAttack (Croce and Hein 2020). Classifiers: the margin
    of the true class over the target is lowered. Detectors: the target's log-odds are raised, which
    makes outliers look like one of that class, and inliers, whose own class is left out, cross the
    boundary where the network is undecided.

    Args:
        search: region, steps, rule and starts of the attack on each class; one restart a class.
        classes: how many classes are tried, the likeliest on the clean image first.
    """

    search: PGD
    classes: int = 9
    keeps_clean = True

    def __post_init__(self) -> None:
        if not isinstance(self.classes, int) or self.classes < 1:
            raise UserError(f"classes: {self.classes!r} is not a number of classes >= 1")

    def settings(self) -> Settings:
        """Return the search's settings; each class counts as a restart."""
        settings = self.search.settings()
        settings["restarts"] *= self.classes
        return settings

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield a candidate for each class."""
        networks = classifiers(detector, "targeted")
        read = nn.ModuleList(networks)  # what is differentiated, whatever the detector needs
        with torch.no_grad():
            likely = torch.stack([losses.wide(net(images)).softmax(1) for net in networks]).sum(
                0
            )  # (N, K)
        order = likely.argsort(1, descending=True)[:, 1 if direction == 1 else 0 :]
        for rank in range(min(self.classes, order.shape[1])):
            target = order[:, rank]

            def objective(x: Tensor, target: Tensor = target) -> Tensor:
                return -torch.stack([losses.log_odds(net(x), target) for net in networks]).sum(0)

            yield from self._search(
                objective, lambda x: direction * detector(x), images, indices, rank, read
            )

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield a candidate for each class other than the true one."""
        with torch.no_grad():
            others = (
                net(images)
                .scatter(1, labels[:, None], -torch.inf)
                .argsort(1, descending=True)[:, :-1]
            )
        for rank in range(min(self.classes, others.shape[1])):
            target = others[:, rank : rank + 1]  # (N, 1)

            def objective(x: Tensor, target: Tensor = target) -> tuple[Tensor, Tensor]:
                logits = losses.wide(net(x))
                behind = (logits.gather(1, labels[:, None]) - logits.gather(1, target))[:, 0]
                return behind, losses.margin(logits, labels)

            yield from self._search(objective, None, images, indices, rank, net)

    def _search(
        self,
        objective: Objective | JudgedObjective,
        judge: Objective | None,
        images: Tensor,
        indices: Tensor,
        rank: int,
        target: nn.Module,
    ) -> Iterator[Candidate]:
        starts, precision = (
            self.search.draws(indices),
            resolve(self.search.precision, images, target),
        )
        searched = computed_in(precision, objective)
        found = self.search.search(
            searched, images, lambda restart: starts(rank + restart * self.classes), judge
        )
        yield from proposed(found, "targeted", precision, judged=judge is not None)
