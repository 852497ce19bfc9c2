"""Projected gradient descent: settings of the engine, and the candidates they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from robust_ood.attacks.objectives import SCORE_OBJECTIVES, Direction, wrong_label
from robust_ood.detectors import Detector
from robust_ood.errors import UserError, unknown_name
from robust_ood.perturb import Minimum, Objective, minimize
from robust_ood.randomness import generators
from robust_ood.regions import Fraction, Generators, Region
from robust_ood.rules import Rule

Draws = Callable[[int], Generators]
"""Restart number to the generators of its random start."""


@dataclass(frozen=True)
class PGD:
    """Settings of projected gradient descent (Madry et al. 2018); one step of it is FGSM.

    Args:
        region: where the perturbed image may be, such as `Linf(8/255)`.
        steps: gradient steps, >= 1.
        step_size: size of a step in the region's norm, a number or a fraction as `2/255`; by default
            `2.5 radius / steps`, so that the boundary can be reached and followed.
        restarts: independent runs, the worst of which is kept image by image, >= 1.
        random_start: begin each restart at a random point of the region instead of at the clean image.
        objective: what an attack on a detector minimises: "score" differentiates the detector itself, "softmax" the
            ALOE paper's objectives of its classifier (Alg. 1).
        rule: how a gradient becomes a step; steepest steps by default.
        seed: seed of the random starts, which are keyed by sample index.
    """

    region: Region
    steps: int = 10
    step_size: float | Fraction | None = None
    restarts: int = 1
    random_start: bool = True
    objective: Literal["score", "softmax"] = "score"
    rule: Rule | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "restarts"):
            count = getattr(self, field)
            if not isinstance(count, int) or count < 1:
                raise UserError(f"{field}: {count!r} is not a whole number >= 1")
        if self.objective not in SCORE_OBJECTIVES:
            raise unknown_name("objective", self.objective, SCORE_OBJECTIVES)
        if self.step_size is not None:
            size = float(Fraction(self.step_size, "step_size"))
        elif self.region.radius < float("inf"):
            size = 2.5 * self.region.radius / self.steps
        else:
            raise UserError("step_size: an Unbounded region has no radius to derive it from; give one")
        if size < 0:
            raise UserError(f"step_size: {size} is negative")
        object.__setattr__(self, "step_size", size)

    def search(
        self, objective: Objective, images: Tensor, draws: Draws, judge: Objective | None = None
    ) -> list[Minimum]:
        """Return the best of each restart by the judge, or by the objective where there is none."""
        return [
            minimize(
                objective,
                images,
                self.region,
                steps=self.steps,
                step_size=self.step_size or 0.0,
                rule=self.rule,
                start=self.region.sample(images, draws(restart)) if self.random_start else None,
                judge=judge,
            )
            for restart in range(self.restarts)
        ]

    def on_score(self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor) -> Iterator[Tensor]:
        """Yield candidate images `(N, C, H, W)` that make `direction * score` small."""
        first, *others = SCORE_OBJECTIVES[self.objective](detector, direction)
        own = self.objective == "score" and detector.exact_surrogate
        judge = None if own else lambda x: direction * detector(x)
        for found in self.search(first, images, self._draws(indices), judge):
            yield found.images
        for other in others:  # best by their own values: judging every iterate would cost more than the search
            for found in self.search(other, images, self._draws(indices)):
                yield found.images

    def on_label(self, net: nn.Module, images: Tensor, labels: Tensor, loss: str, indices: Tensor) -> Iterator[Tensor]:
        """Yield candidate images `(N, C, H, W)` that make the classifier err."""
        judge = None if loss == "margin" else wrong_label(net, labels, "margin")
        for found in self.search(wrong_label(net, labels, loss), images, self._draws(indices), judge):
            yield found.images

    def _draws(self, indices: Tensor) -> Draws:
        return lambda restart: generators(self.seed, "attack start", restart, indices=indices.tolist())


def fgsm(region: Region, *, random_start: bool = False, seed: int = 0) -> PGD:
    """Return the settings of one step of the region's radius (Goodfellow et al. 2015)."""
    return PGD(region, steps=1, step_size=region.radius, random_start=random_start, seed=seed)
