"""The ROSS score: how much the median of noisy scores is worth, given their spread."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface, Surrogate, surface_of
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch, Split
from robust_ood.detectors.fitting.quantiles import Quantile
from robust_ood.detectors.fitting.statistics import Statistic
from robust_ood.detectors.smoothing import Smoothed, check_share
from robust_ood.errors import UserError

_SMALLEST = 1e-12  # of a spread: a constant score has none


class ROSS(Smoothed):
    """The median m of a score under noise, raised above t where the noisy scores agree.

    `min(m, t) + max(m - t, 0) (1 + weight / d)`. d is the mean absolute deviation of the noisy
    scores from m; t is a quantile of m over inliers. Unbounded. Source: ROSS (2026), whose text has
    the median absolute deviation where its code has the mean, which is followed here; weight 0.01
    to 0.05, 25 draws, sigma 0.05 or 0.1 of normalised pixels, about 0.0125 or 0.025 of ours. The
    base score is the wrapped detector's published value.

    The paper attacks the base score. An attacker who knows the defence follows the score itself,
    spread included, over draws that are fresh at each step, and the mean of the wrapped surrogate:
    `attack_surface` gives both.

    Args:
        detector: the score to wrap.
        sigma: standard deviation of the noise in pixel fractions, > 0.
        draws: noisy copies of each image, >= 2.
        weight: lambda, >= 0.
        quantile: of m over validation inliers, t, in (0, 1).
        seed: of the noise.
        gradient_draws: noisy copies at each step of an attack.
    """

    @typed
    def __init__(
        self,
        detector: Detector,
        sigma: float | str = 0.025,
        draws: int = 25,
        weight: float = 0.05,
        quantile: float = 0.05,
        seed: int = 0,
        *,
        gradient_draws: int = 16,
    ) -> None:
        super().__init__(detector, sigma, draws, 0.5, seed, gradient_draws=gradient_draws)
        for name, number in (("draws", draws), ("gradient_draws", gradient_draws)):
            if number < 2:
                raise UserError(f"{name}: a spread needs 2 or more, got {number}")
        if not weight >= 0:
            raise UserError(f"weight: expected a number >= 0, got {weight}")
        check_share("quantile", quantile)
        self.weight = float(weight)
        self.share = quantile
        self.declare("threshold")

    @property
    def learns_from(self) -> Mapping[Split, str]:
        """Inliers that the network was not trained on, for t, and what the wrapped one learns."""
        return {"validation": "its threshold is of training images", **super().learns_from}

    def learn(self) -> Rounds:
        """Fit the wrapped detector where it is not fitted, then find t by two passes."""
        if not self.detector.fitted:
            yield from self.detector.learn()
        quantile = Quantile(self.share)

        def reading(statistic: Statistic) -> Pass:
            return Pass(statistic, self._read, self.detector, forward=False, split="validation")

        yield from quantile.rounds(reading)
        self.keep(threshold=torch.tensor(quantile.value))

    def _read(self, seen: SeenBatch) -> tuple[Tensor]:
        return (_median(self._noisy(self.detector.published_forward, seen.images)),)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`, higher = more in-distribution, of images `(N, C, H, W)`."""
        return self._of(self._noisy(self.detector.published_forward, images))

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the score, which is the paper's."""
        return self.forward(images)

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the score `(N,)` over `gradient_draws` draws."""
        return self._itself(images, 0)

    def attack_surface(self) -> AttackSurface:
        """Return the score over fresh draws, then the wrapped surrogates over fresh draws."""
        uses = count()

        def itself(images: Tensor) -> Tensor:
            return self._itself(images, next(uses))

        surrogates: tuple[Surrogate, ...] = (itself, *super().attack_surface().surrogates)
        float32 = surface_of(self.detector).needs_float32
        return AttackSurface(surrogates, needs_float32=float32)

    def _itself(self, images: Tensor, use: int) -> Tensor:
        noise = self._gradient_noise(images, use)
        return self._of(self._over(self.detector.published_forward, images, noise))

    def _of(self, scores: Tensor) -> Tensor:
        """Return the score `(N,)` of noisy scores `(draws, N)`."""
        median = _median(scores)
        spread = (scores - median).abs().mean(0).clamp(min=_SMALLEST)
        threshold = self.learned("threshold").to(scores)
        above = (median - threshold).clamp(min=0)
        return median.minimum(threshold) + above * (1 + self.weight / spread)


def _median(scores: Tensor) -> Tensor:
    """Return the lower median `(N,)` of scores `(draws, N)`."""
    return scores.median(0).values
