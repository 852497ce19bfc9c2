"""Projected gradient descent in all its forms: settings of the engine, and the candidates they
give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from robust_ood.attacks.apply import Candidate, Settings
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
from robust_ood.detectors import Detector, surface_of
from robust_ood.errors import UserError, unknown_name
from robust_ood.perturb import JudgedObjective, Minimum, Objective, both_values, minimize
from robust_ood.randomness import generators
from robust_ood.regions import Fraction, Generators, Region
from robust_ood.rules import AutoPGD, Rule

Draws = Callable[[int], Generators]
"""Restart number to the generators of its random start."""


@dataclass(frozen=True)
class PGD:
    """Settings of projected gradient descent; one step of it is FGSM.

    Source: Madry et al. 2018; on detectors, ALOE Alg. 1 and 2 and Fort Eq. 2. Images are `(N, C, H,
    W)` in [0, 1].

    Args:
        region: where the perturbed image may be, such as `Linf(8/255)`.
        steps: gradient steps, >= 1.
        step_size: size of a step in the region's norm, a number or a fraction as `2/255`; by
            default `2.5 radius / steps`, so that the boundary can be reached and followed.
        restarts: independent runs, the worst of which is kept image by image, >= 1.
        random_start: begin each restart at a random point of the region instead of at the clean
            image.
        objective: what an attack on a detector minimises: "score" differentiates the detector
            itself, "unmoved" leaves out its input noise or descent, "softmax" takes the ALOE
            paper's objectives of its classifier (Alg. 1), "msp" the classifier's largest
            probability, "features" its penultimate features.
        loss: what an attack on a classifier climbs: "cross_entropy", "margin", "dlr" (3 classes or
            more) or "dlr_or_margin".
        keep: "best", the worst iterate by the true score or margin; "objective", the best by its
            own objective, and "last", the last iterate, never look at the true score: they make a
            transferred attack of it.
        rule: how a gradient becomes a step; steepest steps by default.
        noise: standard deviation of Gaussian noise over which the objective is averaged, in pixel
            fractions.
        noise_draws: draws averaged at each step, for `noise` or for a detector that is random
            itself.
        seed: seed of the random starts, which are keyed by sample index.
        precision: of the gradients; "auto" is bfloat16 where the device has it and the detector
            bears it, else float32. True scores are float32 always. An autocast around the attack,
            and a float64 network, keep theirs.
    """

    region: Region
    steps: int = 10
    step_size: float | Fraction | None = None
    restarts: int = 1
    random_start: bool = True
    objective: Literal["score", "unmoved", "softmax", "msp", "features"] = "score"
    loss: Literal["cross_entropy", "margin", "dlr", "dlr_or_margin"] = "cross_entropy"
    keep: Literal["best", "objective", "last"] = "best"
    rule: Rule | None = None
    noise: float = 0.0
    noise_draws: int = 1
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for field in ("steps", "restarts", "noise_draws"):
            if not isinstance(getattr(self, field), int) or getattr(self, field) < 1:
                raise UserError(f"{field}: {getattr(self, field)} is not a whole number >= 1")
        if self.objective not in SCORE_OBJECTIVES:
            raise unknown_name("objective", self.objective, SCORE_OBJECTIVES)
        if self.loss not in LABEL_LOSSES:
            raise unknown_name("loss", self.loss, LABEL_LOSSES)
        if self.keep not in ("best", "objective", "last"):
            raise unknown_name("keep", self.keep, ("best", "objective", "last"))
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.keep == "last" and self.restarts > 1:
            raise UserError(
                f"restarts: {self.restarts} with keep='last', which cannot choose among them; give 1"
            )
        object.__setattr__(self, "step_size", self._step_size())

    def _step_size(self) -> float:
        if self.step_size is not None:
            size = float(Fraction(self.step_size, "step_size"))
        elif self.region.radius < float("inf"):
            size = 2.5 * self.region.radius / self.steps
        else:
            raise UserError(
                "step_size: an Unbounded region has no radius to derive it from; give one"
            )
        if size < 0:
            raise UserError(f"step_size: {size} is negative")
        return size

    @property
    def keeps_clean(self) -> bool:
        """Whether an image that no iterate beats stays clean: not for a transferred attack."""
        return self.keep == "best"

    def settings(self) -> Settings:
        """Return norm, radius, steps and restarts."""
        return Settings(
            norm=self.region.name,
            radius=self.region.radius,
            steps=self.steps,
            restarts=self.restarts,
        )

    def search(
        self,
        objective: Objective | JudgedObjective,
        images: Tensor,
        draws: Draws,
        judge: Objective | None = None,
    ) -> list[Minimum]:
        """Return the outcome of each restart: its best by the judge (or by the objective), or its
        last iterate.
        """
        searched = objective
        if self.noise or self.noise_draws > 1:
            judge = judge or (lambda x: both_values(objective(x))[1])
            if (
                not self.noise
            ):  # the score is random itself, and the luck of one draw is no strength
                judge = expected(judge, 0.0, self.noise_draws, self.seed)
            searched = expected(
                lambda x: both_values(objective(x))[0], self.noise, self.noise_draws, self.seed
            )
        return [
            minimize(
                searched,
                images,
                self.region,
                steps=self.steps,
                step_size=self.step_size or 0.0,
                rule=self.rule,
                start=self.region.sample(images, draws(restart)) if self.random_start else None,
                keep="last" if self.keep == "last" else "best",
                judge=judge,
            )
            for restart in range(self.restarts)
        ]

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield candidates that make `direction * score` small."""
        # An attack on the classifiers is the same whichever detector reads them.
        differentiated = (
            nn.ModuleList(detector.networks) if self.objective in READ_CLASSIFIERS else detector
        )
        precision = resolve(self.precision, images, differentiated)
        own = self.objective == "score" and surface_of(detector).exact
        judge: Objective | None = (
            None if own or self.keep != "best" else lambda x: direction * detector(x)
        )
        for objective in SCORE_OBJECTIVES[self.objective](detector, direction, images):
            yield from self._candidates(objective, judge, images, indices, precision)
            if self.keep != "best":
                return  # a transferred attack follows one source: choosing between two would take a look at the score
            judge = None  # others, best by their own values: judging every iterate would cost more than the search

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield candidates that make the classifier err."""
        precision = resolve(self.precision, images, net)
        judged = self.keep == "best" and self.loss != "margin"
        objective = (wrong_label_judged if judged else wrong_label)(net, labels, self.loss)
        yield from self._candidates(objective, None, images, indices, precision)

    def _candidates(
        self,
        objective: Objective | JudgedObjective,
        judge: Objective | None,
        images: Tensor,
        indices: Tensor,
        precision: str,
    ) -> Iterator[Candidate]:
        found = self.search(computed_in(precision, objective), images, self.draws(indices), judge)
        if self.keep != "objective":
            yield from proposed(found, "pgd", precision, judged=judge is not None)
            return
        values = torch.stack(
            [one.values for one in found if one.values is not None]
        )  # (restarts, N)
        kept = torch.stack([one.images for one in found])  # (restarts, N, C, H, W)
        yield Candidate(kept[values.argmin(0), torch.arange(len(images))], "pgd", precision)

    def draws(self, indices: Tensor) -> Draws:
        """Return what keys the random starts: seed, restart and sample index."""
        return lambda restart: generators(
            self.seed, "attack start", restart, indices=indices.tolist()
        )


def proposed(
    found: list[Minimum], member: str, precision: str, *, judged: bool
) -> Iterator[Candidate]:
    """Yield what the restarts kept; the last iterates, too, where no judge chose and rounded values
    did.

    Steps change a score by less than rounding does where the radius is small or the search has
    settled.
    """
    for one in found:
        yield Candidate(one.images, member, precision)
        if rounds(precision) and one.values is not None and not judged:
            yield Candidate(one.last, member, precision)


def fgsm(
    region: Region, *, random_start: bool = False, seed: int = 0, precision: Precision = "auto"
) -> PGD:
    """Return the settings of one step of the region's radius. Source: Goodfellow et al. 2015."""
    return PGD(
        region,
        steps=1,
        step_size=region.radius,
        random_start=random_start,
        seed=seed,
        precision=precision,
    )


def apgd(
    region: Region,
    *,
    steps: int = 100,
    restarts: int = 1,
    objective: Literal["score", "unmoved", "softmax", "msp", "features"] = "score",
    loss: Literal["cross_entropy", "margin", "dlr", "dlr_or_margin"] = "cross_entropy",
    seed: int = 0,
    precision: Precision = "auto",
) -> PGD:
    """Return the settings of Auto-PGD: the first step is twice the radius, later ones adapt.

    Source: Croce and Hein 2020, Alg. 1. The arguments are those of `PGD`.
    """
    return PGD(
        region,
        steps=steps,
        step_size=2 * region.radius,
        restarts=restarts,
        objective=objective,
        loss=loss,
        rule=AutoPGD(),
        seed=seed,
        precision=precision,
    )


def transferred(
    attack: PGD, source: Literal["msp", "softmax", "unmoved", "features"] = "msp"
) -> PGD:
    """Return the attack through another objective, handed over as it is, without a look at the true
    score.

    Args:
        attack: region, steps and restarts.
        source: what is attacked instead of the detector: its classifier's MSP, the softmax
            objectives of the ALOE paper, the detector without its input movement, or its features.
    """
    return replace(attack, objective=source, keep="objective")


def aloe_softmax(
    region: Region,
    *,
    steps: int = 10,
    step_size: float | Fraction = 1 / 255,
    seed: int = 0,
    precision: Precision = "auto",
) -> PGD:
    """Return the attack on softmax scores as published, for MSP and ODIN.

    Source: ALOE paper Alg. 1. Random start, steps of 1/255, the last iterate, transferred: ODIN is
    scored on images made without its temperature and its input noise. The random start is not
    rounded to whole pixel levels, which the public code does.
    """
    return PGD(
        region,
        steps=steps,
        step_size=step_size,
        objective="softmax",
        keep="last",
        seed=seed,
        precision=precision,
    )


def aloe_mahalanobis(
    region: Region,
    *,
    steps: int = 10,
    step_size: float | Fraction = 1 / 255,
    seed: int = 0,
    precision: Precision = "auto",
) -> PGD:
    """Return the attack on the Mahalanobis regression as published, through all but the input
    noise.

    Source: ALOE paper Alg. 2. The regression's log-odds stand for its cross-entropy, whose gradient
    has the same sign.
    """
    return PGD(
        region,
        steps=steps,
        step_size=step_size,
        objective="unmoved",
        keep="last",
        seed=seed,
        precision=precision,
    )
