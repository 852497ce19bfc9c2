"""Cheaper attacks in training: noise before a single step, few steps early, reused gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.attacks.budget import Budget, Steps, check_count
from robust_ood.errors import UserError
from robust_ood.regions import Fraction, Generators, Region
from robust_ood.rules import Rule, Steepest
from robust_ood.texts import shown

_LONGEST = 1.25
"""Longest step of a shortened search, in radii: Wong et al. 2020 saw longer ones fail."""

EarlySteps = Sequence[tuple[float, int]]
"""Until which share of the run how many steps are taken, as `[[0.3, 1], [0.6, 3]]`."""


@dataclass(frozen=True, init=False)
class TrainingBudget(Budget):
    """A budget that only training may have, because it leaves its region or changes with the run.

    Images are `(N, C, H, W)` in [0, 1]. Without its own settings it is a `Budget`.

    Source: N-FGSM, de Jorge et al. 2022, "Make some noise: reliable and efficient single-step
    adversarial training", Alg. 1, with k = 2 there; for single steps from a random start, Wong et
    al. 2020, "Fast is better than free"; for replays, Shafahi et al. 2019, "Adversarial training
    for free!", Alg. 1.

    Args:
        region, steps, step_size, random_start, rule: as in `Budget`; with replays, a random start
            is that of the run's first batch.
        start_noise: k >= 0; a single step begins at noise within k radii, and what it gives is
            clipped to [0, 1] alone, not to the radius around the image. Searches of several steps
            stay within the radius.
        early_steps: pairs (share of the run in (0, 1], steps >= 1), shares rising: until that share
            the search has that many steps, fewer than `steps`. Its steps are longer, to reach as
            far as all of them would, up to 1.25 radii each.
        replays: m >= 2; a batch is trained m times in a row, and the gradient that trains the
            weights also takes the step of the images, so that attacks cost no passes of their own.
            For a single step, of the radius in the paper, which is the default.

    Raises:
        UserError: noise where no search has a single step, pairs that are not as described, or
            replays beside several steps, either of the others, or a rule that is not `Steepest`.
    """

    start_noise: float | None
    early: tuple[tuple[float, Budget], ...]
    replays: int | None

    @typed
    def __init__(
        self,
        region: Region,
        steps: Steps = 10,
        step_size: float | Fraction | None = None,
        random_start: bool = True,
        rule: Rule | None = None,
        start_noise: float | None = None,
        early_steps: EarlySteps = (),
        replays: int | None = None,
    ) -> None:
        super().__init__(region, steps, step_size, random_start, rule)
        if replays is not None:
            self._check_replays("replays", replays, start_noise, early_steps)
        self._set(replays=replays)
        _check_early("early_steps", early_steps, self.steps)
        counts = [self.steps] + [int(count) for _, count in early_steps]
        if start_noise is not None:
            _check_noise("start_noise", start_noise, region, counts)
        early = []
        for until, count in early_steps:
            early.append((float(until), self._shortened(int(count), start_noise)))
        is_single = self.steps == 1
        self._set(start_noise=start_noise if is_single else None, early=tuple(early))
        if self.start_noise is not None:
            self._set(random_start=True)

    def at(self, progress: float) -> Budget:
        """Return the budget at a share of the run, in [0, 1]."""
        for until, budget in self.early:
            if progress < until:
                return budget
        return self

    def start(self, images: Tensor, generators: Generators) -> Tensor | None:
        """Return where a search around images `(N, C, H, W)` begins; None for the images."""
        if self.start_noise is None:
            return super().start(images, generators)
        return self.region.scaled(self.start_noise).sample(images, generators)

    @property
    def searched(self) -> Region:
        """Where the search may go: with noise, as far as noise and step together reach."""
        if self.start_noise is None or not self.region.radius:
            return self.region
        # A hair more, so that the last digit of a step at the border is not cut.
        reach = self.start_noise + self.step_size / self.region.radius
        return self.region.scaled(reach * (1 + 1e-6))

    def warn_if_short(self, field: str) -> None:
        """Warn where all steps together are shorter than the radius, unless replays add more."""
        if self.replays is None:
            super().warn_if_short(field)

    def _check_replays(
        self, field: str, replays: int, start_noise: float | None, early_steps: EarlySteps
    ) -> None:
        if not isinstance(replays, int) or replays < 2:
            raise UserError(
                f"{field}: {replays} is not a whole number >= 2; a batch that is trained once is "
                "gone when its gradient is known"
            )
        if self.steps != 1:
            raise UserError(
                f"{field}: each pass of training gives one step, and this search has {self.steps}; "
                "expected steps: 1"
            )
        if start_noise is not None or early_steps:
            other = "early_steps" if start_noise is None else "start_noise"
            raise UserError(
                f"{field}: {other} is of searches with passes of their own, and replays have none; "
                "give one of the two"
            )
        if self.rule is not None and not isinstance(self.rule, Steepest):
            raise UserError(
                f"{field}: each step follows the sign or direction of one gradient, and "
                f"{type(self.rule).__name__} reads more than that; expected rule: steepest"
            )

    def _shortened(self, count: int, start_noise: float | None) -> Budget:
        """Return the same search with fewer steps, each as much longer as may be."""
        if count == 1 and start_noise is not None:
            return TrainingBudget(
                self.region, 1, self.region.radius, rule=self.rule, start_noise=start_noise
            )
        size = min(self.steps * self.step_size / count, _LONGEST * self.region.radius)
        size = max(size, self.step_size)
        return Budget(self.region, count, size, self.random_start, self.rule)


def _check_noise(field: str, noise: float, region: Region, counts: Sequence[int]) -> None:
    if not 0 <= noise < math.inf:
        raise UserError(f"{field}: {noise} is not a finite number of radii >= 0")
    if region.radius == math.inf:
        raise UserError(f"{field}: counts radii, and an Unbounded region has none")
    if 1 not in counts:
        raise UserError(
            f"{field}: is for a single step, after which nothing is clipped to the radius, and "
            f"this search has {min(counts)}; expected steps: 1, or 1 among early_steps"
        )


def _check_early(field: str, pairs: EarlySteps, steps: int) -> None:
    before = 0.0
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(
                f"{field}: expected pairs [share of the run, steps], as in [[0.3, 1], [0.6, 3]], "
                f"got {shown(pair)}"
            )
        until, count = pair
        if not before < until <= 1:
            raise UserError(
                f"{field}: {until} is not a share of the run in ({before:g}, 1]; expected shares "
                "that rise"
            )
        check_count(field, count)
        if count >= steps:
            raise UserError(f"{field}: {count} steps are not fewer than all {steps}")
        before = until
