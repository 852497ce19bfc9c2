"""A quantile of any score under Gaussian noise, which `robust_ood.certify` bounds in a ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count

import torch
from torch import Tensor

from robust_ood.detectors.attack_surface import AttackSurface, Surrogate, surface_of
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.wrapper import Wrapper
from robust_ood.errors import UserError
from robust_ood.randomness import Key, generator
from robust_ood.regions import Fraction
from robust_ood.texts import shown

_COPIES = 512
"""Noisy images that are scored at a time, if no more images than that are given."""
_BLOCK_PIXELS = 2**23
"""Numbers that are drawn at a time, 32 MiB, so that memory does not grow with the draws."""


class Smoothed(Wrapper):
    """The quantile of another detector's scores under Gaussian noise, the median by default.

    The scores are as the wrapped detector's. Source: Chiang et al. 2020 (median smoothing); Cohen
    et al. 2019 (the noise). Noisy pixels are not clipped to [0, 1], as in both papers. All images
    share the same draws, which `seed` determines: a score depends on its image alone, whatever its
    batch, its index or how often an attacker asks.

    An attack follows the mean of the wrapped surrogate over draws that are fresh at each step, the
    expectation over the noise (Salman et al. 2019). The draws of the score would let it fit the
    sample instead of the distribution, which is what a certificate speaks of.

    Args:
        detector: the score to smooth; it is fitted on images without noise.
        sigma: standard deviation of the noise in pixel fractions, > 0.
        draws: noisy copies of each image, >= 1.
        quantile: which quantile of their scores, in (0, 1): the smallest of them that at least
            this share does not exceed; 0.5 is the (lower) median.
        seed: of the noise.
        gradient_draws: noisy copies at each step of an attack, whose memory grows with them.
    """

    def __init__(
        self,
        detector: Detector,
        sigma: float | str,
        draws: int = 100,
        quantile: float = 0.5,
        seed: int = 0,
        *,
        gradient_draws: int = 16,
    ) -> None:
        super().__init__(detector)
        refuse_smoothed(detector)
        self.sigma = checked_sigma(sigma)
        check_draws("draws", draws)
        check_draws("gradient_draws", gradient_draws)
        check_share("quantile", quantile)
        self.draws = draws
        self.quantile = quantile
        self.seed = seed
        self.gradient_draws = gradient_draws

    def forward(self, images: Tensor) -> Tensor:
        """Return the quantiles `(N,)`."""
        return self._quantiles(self.detector, images)

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the quantiles `(N,)` of the wrapped detector's published values."""
        return self._quantiles(self.detector.published_forward, images)

    def _quantiles(self, score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        scores = self._noisy(score, images)
        return scores.kthvalue(quantile_rank(self.quantile, self.draws), dim=0).values

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the mean of the wrapped surrogate `(N,)` over `gradient_draws` draws."""
        return self._expected(self.detector.surrogate, images, 0)

    def attack_surface(self) -> AttackSurface:
        """Return the wrapped surrogates, each averaged over draws that are fresh at each use.

        None of them orders images exactly as the quantile does.
        """
        surface = surface_of(self.detector).map(self._refreshed)
        return AttackSurface(
            surface.surrogates, unmoved=surface.unmoved, needs_float32=surface.needs_float32
        )

    def _refreshed(self, surrogate: Surrogate) -> Surrogate:
        # The first use has the draws of `self.surrogate`.
        uses = count()
        return lambda images: self._expected(surrogate, images, next(uses))

    def _expected(self, surrogate: Surrogate, images: Tensor, use: int) -> Tensor:
        return self._over(surrogate, images, self._gradient_noise(images, use)).mean(0)

    def _gradient_noise(self, images: Tensor, use: int) -> Iterator[Tensor]:
        """Yield the draws of an attack's step, other ones at each use."""
        draws = self.gradient_draws
        return noise_blocks(images.shape[1:], draws, self.seed, "smoothed gradient", use)

    def _noisy(self, score: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return a score of the images under each draw of the detector, `(draws, N)`."""
        noise = noise_blocks(images.shape[1:], self.draws, self.seed, "smoothed score")
        return self._over(score, images, noise)

    def _over(
        self, score: Callable[[Tensor], Tensor], images: Tensor, noise: Iterator[Tensor]
    ) -> Tensor:
        """Return a score `(draws, N)` of the images under each draw, some of them at a time."""
        at_once = max(1, _COPIES // max(1, len(images)))
        values = []
        for block in noise:
            for draws in torch.split(block, at_once):
                noisy = images + self.sigma * draws.to(images)[:, None]  # (draws, N, C, H, W)
                values.append(score(noisy.flatten(0, 1)).view(len(draws), len(images)))
        return torch.cat(values)


def noise_blocks(shape: tuple[int, ...], draws: int, seed: int, *keys: Key) -> Iterator[Tensor]:
    """Yield standard normal noise, together `(draws, *shape)`, in blocks of bounded memory.

    The numbers are a function of shape, draws, seed and keys alone, on every device.

    Args:
        shape: of one image, `(C, H, W)`.
        draws: how many, >= 1.
        seed: of all.
        keys: what they are for.
    """
    block = max(1, min(_COPIES, _BLOCK_PIXELS // max(1, math.prod(shape))))
    for start in range(0, draws, block):
        # A generator for each block: how many are drawn after it changes nothing.
        source = generator(seed, *keys, start)
        yield torch.randn((min(block, draws - start), *shape), generator=source)


def quantile_rank(quantile: float, draws: int) -> int:
    """Return which of the sorted scores, from 1, is their quantile.

    It is the smallest that at least this share of them does not exceed.
    """
    # 0.07 * 100 is a little more than 7.
    return max(1, math.ceil(quantile * draws - 1e-9))


def refuse_smoothed(detector: Detector) -> None:
    """Raise `UserError` where a detector is smoothed already, or has a smoothed one inside."""
    if any(isinstance(module, Smoothed) for module in detector.modules()):
        raise UserError(
            f"detector: {type(detector).__name__} is smoothed already; expected the detector "
            "without its noise"
        )


def checked_sigma(sigma: float | str) -> float:
    """Return the noise's standard deviation as a number > 0, or raise `UserError`."""
    value = float(Fraction(sigma, "sigma"))
    if not value > 0:
        raise UserError(f"sigma: expected a standard deviation > 0 in pixel fractions, got {sigma}")
    return value


def check_draws(field: str, draws: object) -> None:
    """Raise `UserError` for anything but a whole number >= 1."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise UserError(f"{field}: expected a whole number >= 1, got {shown(draws)}")


def check_share(field: str, share: object) -> None:
    """Raise `UserError` for anything but a number in (0, 1)."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise UserError(f"{field}: expected a number in (0, 1), got {shown(share)}")
