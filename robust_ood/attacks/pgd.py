"""Projected gradient descent in all its forms: its settings, and the candidates that it gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.attacks.apply import Candidate, Settings
from robust_ood.attacks.budget import Budget, Steps, check_count
from robust_ood.attacks.objectives import (
    LABEL_LOSSES,
    READ_CLASSIFIERS,
    SCORE_OBJECTIVES,
    Direction,
    expected,
    wrong_label,
    wrong_label_judged,
)
from robust_ood.attacks.precision import PRECISIONS, Precision, computed_in, resolve, rounds
from robust_ood.deprecation import warn_renamed
from robust_ood.detectors import Detector, surface_of
from robust_ood.errors import UserError, unknown_name
from robust_ood.perturb import JudgedObjective, Minimum, Objective, both_values
from robust_ood.randomness import generators
from robust_ood.regions import Fraction, Generators, Region
from robust_ood.rules import Rule

Draws = Callable[[int], Generators]
"""Restart number to the generators of its random start."""

ScoreObjective = Literal["score", "unmoved", "softmax", "msp", "tied", "features"]
LabelLoss = Literal["cross_entropy", "margin", "dlr", "dlr_or_margin"]
Keep = Literal["best", "objective", "last"]


@dataclass(frozen=True, init=False)
class PGD(Budget):
    """Settings of projected gradient descent in an evaluation; one step of it is FGSM.

    Source: Madry et al. 2018; on detectors, ALOE Alg. 1 and 2 and Fort Eq. 2. Images are `(N, C, H,
    W)` in [0, 1].

    Args:
        region, steps, step_size, random_start, rule: the budget; see `Budget`.
        restarts: independent runs, the worst of which is kept image by image, >= 1.
        objective: what an attack on a detector minimises: "score" differentiates the detector
            itself, "unmoved" leaves out its input noise or descent, "softmax" takes the ALOE
            paper's objectives of its classifier (Alg. 1), "msp" the classifier's largest
            probability, "tied" a tie of its three likeliest classes, "features" its penultimate
            features.
        loss: what an attack on a classifier climbs: "cross_entropy", "margin", "dlr" (3 classes or
            more) or "dlr_or_margin".
        keep: "best", the worst iterate by the true score or margin; "objective", the best by its
            own objective, and "last", the last iterate, never look at the true score: they make a
            transferred attack of it.
        noise: standard deviation of Gaussian noise over which the objective is averaged, in pixel
            fractions.
        noise_draws: draws averaged at each step, for `noise` or for a detector that is random
            itself.
        seed: seed of the random starts, which are keyed by sample index.
        precision: of the gradients; "auto" is bfloat16 where the device has it and the detector
            bears it, else float32. True scores are float32 always. An autocast around the attack,
            and a float64 network, keep theirs.
    """

    restarts: int
    objective: ScoreObjective
    loss: LabelLoss
    keep: Keep
    noise: float
    noise_draws: int
    seed: int
    precision: Precision

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        region: Region,
        steps: Steps = 10,
        step_size: float | Fraction | None = None,
        restarts: int = 1,
        random_start: bool = True,
        objective: ScoreObjective = "score",
        loss: LabelLoss = "cross_entropy",
        keep: Keep = "best",
        rule: Rule | None = None,
        noise: float = 0.0,
        noise_draws: int = 1,
        seed: int = 0,
        precision: Precision = "auto",
    ) -> None:
        super().__init__(region, steps, step_size, random_start, rule)
        self._set(
            restarts=restarts,
            objective=objective,
            loss=loss,
            keep=keep,
            noise=noise,
            noise_draws=noise_draws,
            seed=seed,
            precision=precision,
        )
        self._check()

    def _check(self) -> None:
        check_count("restarts", self.restarts)
        check_count("noise_draws", self.noise_draws)
        if not 0 <= self.noise < math.inf:
            raise UserError(f"noise: {self.noise} is not a finite number >= 0")
        choices: dict[str, Collection[str]] = {
            "objective": SCORE_OBJECTIVES,
            "loss": LABEL_LOSSES,
            "keep": get_args(Keep),
            "precision": PRECISIONS,
        }
        for field, known in choices.items():
            value = getattr(self, field)
            if value not in known:
                raise unknown_name(field, value, known)
        if self.keep == "last" and self.restarts > 1:
            raise UserError(
                f"restarts: {self.restarts} with keep='last', which cannot choose among them; "
                "expected 1"
            )

    @property
    def keeps_clean(self) -> bool:
        """Whether an image that no iterate beats stays clean: not for a transferred attack."""
        return self.keep == "best"

    def settings(self) -> Settings:
        """Return norm, radius, steps and restarts."""
        return Settings(
            norm=self.region.title,
            radius=self.region.radius,
            steps=self.steps,
            restarts=self.restarts,
        )

    def run(
        self,
        objective: Objective | JudgedObjective,
        images: Tensor,
        draws: Draws,
        judge: Objective | None = None,
        start: Tensor | None = None,
    ) -> list[Minimum]:
        """Return the outcome of each restart: its best iterate, or its last one.

        Args:
            objective: what is minimised; with a pair, its second value chooses the best iterate.
            images: `(N, C, H, W)` in [0, 1].
            draws: restart number to the generators of its random start.
            judge: what chooses the best iterate, where that is not the objective.
            start: images `(N, C, H, W)` of the region to begin at; by default, random ones.
        """
        if self.noise or self.noise_draws > 1:
            objective, judge = self._averaged(objective, judge)
        keep: Literal["best", "last"] = "last" if self.keep == "last" else "best"
        minima = []
        for restart in range(self.restarts):
            begin = start
            if begin is None:
                begin = self.start(images, draws(restart))
            minima.append(self.descend(objective, images, begin, keep=keep, judge=judge))
        return minima

    def _averaged(
        self, objective: Objective | JudgedObjective, judge: Objective | None
    ) -> tuple[Objective, Objective]:
        """Return the objective and its judge over several draws of noise."""

        def descended(images: Tensor) -> Tensor:
            return both_values(objective(images))[0]

        def judged(images: Tensor) -> Tensor:
            return both_values(objective(images))[1]

        judge = judged if judge is None else judge
        if not self.noise:
            # The score is random itself, and the luck of one draw is no strength.
            judge = expected(judge, 0.0, self.noise_draws, self.seed)
        return expected(descended, self.noise, self.noise_draws, self.seed), judge

    def search(self, *arguments: Any, **settings: Any) -> list[Minimum]:
        """Return the same as `run`, its name from the next release on."""
        warn_renamed("PGD.search", "PGD.run")
        return self.run(*arguments, **settings)

    def on_score(
        self,
        detector: Detector,
        images: Tensor,
        direction: Direction,
        indices: Tensor,
        start: Tensor | None = None,
    ) -> Iterator[Candidate]:
        """Yield candidates that make `direction * score` small, from `start` if it is given."""
        attack = self.at_images(indices)
        # An attack on the classifiers is the same whichever detector reads them.
        reads_classifiers = self.objective in READ_CLASSIFIERS
        attacked = nn.ModuleList(detector.networks) if reads_classifiers else detector
        precision = resolve(self.precision, images, attacked)

        def true_score(x: Tensor) -> Tensor:
            scores: Tensor = detector(x)
            return direction * scores

        exact = self.objective == "score" and surface_of(detector).exact
        judge: Objective | None = true_score
        if exact or self.keep != "best":
            judge = None
        for objective in SCORE_OBJECTIVES[self.objective](detector, direction, images):
            draws = self.draws(indices)
            yield from attack._candidates(objective, judge, images, draws, precision, start)
            if self.keep != "best":
                # A transferred attack follows one source: to choose between two, it would have to
                # look at the true score.
                return
            # Further objectives keep the best by their own values: judging every iterate would cost
            # more than the search.
            judge = None

    def on_label(
        self,
        net: nn.Module,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        start: Tensor | None = None,
    ) -> Iterator[Candidate]:
        """Yield candidates that make the classifier err, from `start` if it is given."""
        precision = resolve(self.precision, images, net)
        judged = self.keep == "best" and self.loss != "margin"
        make_objective = wrong_label_judged if judged else wrong_label
        objective = make_objective(net, labels, self.loss)
        draws = self.draws(indices)
        attack = self.at_images(indices)
        yield from attack._candidates(objective, None, images, draws, precision, start)

    def _candidates(
        self,
        objective: Objective | JudgedObjective,
        judge: Objective | None,
        images: Tensor,
        draws: Draws,
        precision: str,
        start: Tensor | None,
    ) -> Iterator[Candidate]:
        searched = computed_in(precision, objective)
        minima = self.run(searched, images, draws, judge, start)
        if self.keep != "objective":
            yield from proposed(minima, "pgd", precision, judged=judge is not None)
            return
        values = []
        for minimum in minima:
            assert minimum.values is not None  # None is for the last iterate alone
            values.append(minimum.values)
        best = torch.stack(values).argmin(0)  # (restarts, N) to (N,)
        kept = torch.stack([minimum.images for minimum in minima])  # (restarts, N, C, H, W)
        yield Candidate(kept[best, torch.arange(len(images))], "pgd", precision)

    def at_images(self, indices: Tensor) -> PGD:
        """Return the attack in the region of the images with these sample indices `(N,)`."""
        region = self.region.at(indices)
        if region is self.region:
            return self
        return replace(self, region=region)

    def draws(self, indices: Tensor) -> Draws:
        """Return what keys the random starts: seed, restart and sample index."""
        return lambda restart: generators(
            self.seed, "attack start", restart, indices=indices.tolist()
        )


def proposed(
    minima: list[Minimum], member: str, precision: str, *, judged: bool
) -> Iterator[Candidate]:
    """Yield what the restarts kept, and their last iterates where only rounded values chose.

    Steps change a score by less than rounding does where the radius is small or the search has
    settled.
    """
    for minimum in minima:
        yield Candidate(minimum.images, member, precision)
        if rounds(precision) and minimum.values is not None and not judged:
            yield Candidate(minimum.last, member, precision)
