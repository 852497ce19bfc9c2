"""The safe-spot score: a network's confidence on an image and on its attacked safe spot."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses, safe_spots
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.logarithms import log_largest
from robust_ood.errors import UserError, notify, unknown_name
from robust_ood.inputs import logits_of
from robust_ood.models.wrap import as_network
from robust_ood.modes import differentiating, evaluating, ordinary
from robust_ood.regions import Fraction, region_of

_LONG = 1e8  # pixels times passes, of one image: minutes on a processor for a ResNet-20

# Not in the detector, all of whose attributes are part of its name in the store.
_said: WeakKeyDictionary[Detector, set[tuple[int, int]]] = WeakKeyDictionary()
"""The sizes of images whose cost was said."""


class SafeSpot(Detector):
    """A mean of two largest probabilities, `share p(x) + (1 - share) p(x_a)`, as its log-odds.

    The published value is the mean itself, in (1/K, 1], which `published` gives; its log-odds,
    unbounded, order images alike and do not tie where both probabilities are 1 in float32.

    Source: safe spots paper, Sec. 3.6: x_a is the attacked safe spot of x. In-distribution images
    have safe spots more often than others, on networks trained to have them. Search and attack draw
    the same random starts for every image, so that a score depends on its image alone.

    The surrogate is the same mean of the predicted classes' log-odds, with the movement from x to
    x_a held constant.

    The default search is long: 2,120 passes an image. Where it is long for the size of the images,
    one line says so before the first of them.

    Args:
        net: classifier, images to logits.
        radius: how far the safe spot may be (delta), in `norm`, pixel fractions.
        norm: "Linf" or "L2".
        method: "full", "pgd" or "fgsm" (S-Full, S-PGD, S-FGSM); see `safe_spots.search`.
        share: mu in the paper, in [0, 1]; the weight of the image itself.
        attack_radius: how far the attack on the safe spot may go (epsilon); `radius` by default.
        attack_steps: the attack's number of steps, each of a quarter of its radius.
        steps: the search's number of steps; the method's own number by default.
        seed: for the random starts.
    """

    @typed
    def __init__(  # noqa: PLR0913 -- a public constructor: its arguments are the paper's settings
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
            raise UserError(f"share: expected a number in [0, 1], got {share}")
        if method not in safe_spots.STEPS:
            raise unknown_name("method", method, safe_spots.STEPS)
        _require_count("attack_steps", attack_steps)
        if steps is not None:
            _require_count("steps", steps)
        if norm not in safe_spots.NORMS:
            raise unknown_name("norm", norm, safe_spots.NORMS)
        region_of(norm, radius)  # raises for a norm or radius that does not exist
        if attack_radius is not None:
            region_of(norm, attack_radius)
        self.net = as_network(net)
        self.norm = norm
        self.method = method
        self.share = share
        self.radius = float(Fraction(radius, "radius"))
        self.attack_radius = self.radius
        if attack_radius is not None:
            self.attack_radius = float(Fraction(attack_radius, "attack_radius"))
        self.attack_steps = attack_steps
        self.steps = steps
        self.seed = seed

    def forward(self, images: Tensor) -> Tensor:
        """Return scores `(N,)`."""
        at_image, at_safe_spot = self._both_logits(images)
        p_image, rest_image = log_largest(at_image)
        p_spot, rest_spot = log_largest(at_safe_spot)
        return self._log_mix(p_image, p_spot) - self._log_mix(rest_image, rest_spot)

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the mean of the largest probabilities, `(N,)`."""
        at_image, at_safe_spot = self._both_logits(images)
        return self._mix(_largest_probability(at_image), _largest_probability(at_safe_spot))

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the mixed log-odds `(N,)`."""
        at_image, at_safe_spot = self._both_logits(images)
        return self._mix(losses.log_odds(at_image), losses.log_odds(at_safe_spot))

    def attack_surface(self) -> AttackSurface:
        """Return the mixed log-odds, then those of the image alone.

        The latter determine the class for which the safe spot is searched and attacked.
        """
        return AttackSurface((self.surrogate, self._confidence))

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The one classifier."""
        return (self.net,)

    def attacked(self, images: Tensor) -> Tensor:
        """Return the attacked safe spots `(N, C, H, W)`, detached."""
        # Gradients here are those of the search and the attack, none of the caller's.
        images = ordinary(images)
        self._say_cost(images)
        with evaluating(self.net), differentiating():
            with torch.no_grad():
                labels = logits_of(self.net(images)).argmax(1)  # (N,), the predicted classes
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

    def _confidence(self, images: Tensor) -> Tensor:
        return losses.log_odds(logits_of(self.net(images)))

    @property
    def passes(self) -> int:
        """How many passes, forward and backward, an image takes through the network."""
        steps = self.steps
        if steps is None:
            steps = safe_spots.STEPS[self.method]
        search = steps
        if self.method == "full":
            search = steps * (self.attack_steps + 1)  # an attack and a step
        return search + self.attack_steps

    def _say_cost(self, images: Tensor) -> None:
        """Say once, before the first image of a size, how long it takes where it is long."""
        height, width = images.shape[-2:]
        size = (int(height), int(width))
        said = _said.setdefault(self, set())
        if size in said or self.passes * height * width < _LONG:
            return
        said.add(size)
        notify(
            f"SafeSpot: each image of {height} x {width} pixels takes {self.passes:,} passes "
            "forward and backward through the network, which can take minutes; method 'pgd' or "
            "'fgsm', fewer steps or fewer attack_steps take fewer"
        )

    def _both_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits `(N, K)` at each image and at its attacked safe spot."""
        movement = self.attacked(images) - ordinary(images)  # without gradient
        return logits_of(self.net(images)), logits_of(self.net(images + movement))

    def _mix(self, at_image: Tensor, at_safe_spot: Tensor) -> Tensor:
        """Return the mean `(N,)` of values of the image and of its safe spot."""
        return self.share * at_image + (1 - self.share) * at_safe_spot

    def _log_mix(self, at_image: Tensor, at_safe_spot: Tensor) -> Tensor:
        """Return the logarithm of the mean `(N,)` of two probabilities, given in logarithms."""
        if self.share == 0:
            return at_safe_spot
        if self.share == 1:
            return at_image
        other = 1 - self.share
        return torch.logaddexp(at_image + math.log(self.share), at_safe_spot + math.log(other))


def _largest_probability(logits: Tensor) -> Tensor:
    return F.softmax(losses.wide(logits), dim=1).amax(1)


def _require_count(field: str, number: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UserError(f"{field}: expected a whole number >= 1, got {number!r}")
