"""The safe-spot score: how confident the network is on an image, and on its safe spot after an
attack.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses, safe_spots
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector
from robust_ood.errors import UserError, unknown_name
from robust_ood.modes import differentiating, evaluating, ordinary
from robust_ood.regions import Fraction, region_of


class SafeSpot(Detector):
    """A mean of two largest probabilities, `share MSP(x) + (1 - share) MSP(x_a)`, in (1/K, 1].

    Source: safe spots paper, Sec. 3.6: x_a is the attacked safe spot of x; in-distribution images
    have safe spots more often than others, on networks trained to have them. Search and attack draw
    the same random starts for every image, so that a score depends on its image alone.

    The surrogate is the same mean of log-odds of the predicted classes, with the way from x to x_a
    held constant.

    Args:
        net: classifier, images to logits.
        radius: how far the safe spot may be (delta), in `norm`, pixel fractions.
        norm: "Linf" or "L2".
        method: "full", "pgd" or "fgsm" (S-Full, S-PGD, S-FGSM); see `safe_spots.search`.
        share: mu in the paper, in [0, 1]; the weight of the image itself.
        attack_radius: of the attack on the safe spot (epsilon); `radius` by default.
        attack_steps: its steps, each of a quarter of its radius.
        steps: of the search; the method's own number by default.
        seed: of the random starts.
    """

    def __init__(
        self,
        net: nn.Module,
        radius: float | str = 8 / 255,
        norm: str = "Linf",
        method: safe_spots.Method = "full",
        share: float = 0.5,
        *,
        attack_radius: float | str | None = None,
        attack_steps: int = 20,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise UserError(f"share: {share} is not in [0, 1]")
        if method not in safe_spots.STEPS:
            raise unknown_name("method", method, safe_spots.STEPS)
        for field, number in (
            ("attack_steps", attack_steps),
            ("steps", 1 if steps is None else steps),
        ):
            if not isinstance(number, int) or number < 1:
                raise UserError(f"{field}: {number!r} is not a whole number >= 1")
        for bound in (radius, radius if attack_radius is None else attack_radius):
            region_of(norm, bound)
        self.net, self.norm, self.method, self.share = net, norm, method, share
        self.radius = float(Fraction(radius, "radius"))
        self.attack_radius = (
            self.radius
            if attack_radius is None
            else float(Fraction(attack_radius, "attack_radius"))
        )
        self.attack_steps, self.steps, self.seed = attack_steps, steps, seed

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`."""
        return self._mix(images, lambda logits: F.softmax(losses.wide(logits), dim=1).amax(1))

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the mixed log-odds `(N,)`."""
        return self._mix(images, losses.log_odds)

    def attack_surface(self) -> AttackSurface:
        """Return the mixed log-odds, then those of the image alone.

        The latter choose the class that is searched and attacked.
        """
        return AttackSurface((self.surrogate, lambda images: losses.log_odds(self.net(images))))

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)

    def attacked(self, images: Tensor) -> Tensor:
        """Return the attacked safe spots `(N, C, H, W)`, detached."""
        images = ordinary(images)
        with evaluating(self.net), differentiating():
            with torch.no_grad():
                labels = self.net(images).argmax(1)
            spots = safe_spots.search(
                self.net,
                images,
                self.radius,
                self.norm,
                self.method,
                labels,
                steps=self.steps,
                attack_radius=self.attack_radius,
                attack_steps=self.attack_steps,
                seed=self.seed,
                check=False,
            )
            return safe_spots.attack(
                self.net,
                spots,
                labels,
                self.attack_radius,
                self.norm,
                steps=self.attack_steps,
                seed=self.seed,
                check=False,
            )

    def _mix(self, images: Tensor, confidence: Callable[[Tensor], Tensor]) -> Tensor:
        moved = images + (self.attacked(images) - ordinary(images))
        return self.share * confidence(self.net(images)) + (1 - self.share) * confidence(
            self.net(moved)
        )
