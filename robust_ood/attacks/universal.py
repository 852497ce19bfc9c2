"""Universal perturbations: one for all images, found on some images and judged on others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from robust_ood.arguments import check_fields, typed
from robust_ood.attacks.apply import Candidate, Settings
from robust_ood.attacks.budget import check_count
from robust_ood.attacks.objectives import Direction, own_score
from robust_ood.attacks.precision import Precision, computed_in, resolve
from robust_ood.attacks.quantised import Quantised
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.inputs import accepted, checked
from robust_ood.modes import evaluating, ordinary
from robust_ood.perturb import minimize
from robust_ood.randomness import generator
from robust_ood.regions import L2, Linf, Region
from robust_ood.rules import Steepest

Perturbations = Mapping[int, Tensor]
"""By direction, 1 (lowers scores) and -1 (raises them), the perturbation `(C, H, W)`."""


@dataclass(frozen=True)
class Universal:
    """Settings of one perturbation that is added to all images `(N, C, H, W)` of a side.

    Source: Moosavi-Dezfooli et al. 2017; it is found as by Shafahi et al. 2020, Alg. 2: gradient
    steps on the mean objective of batches of fitting images, projected onto the ball. It never
    looks at the images that it is judged on, nor at their scores.

    Args:
        region: an Linf or L2 ball.
        steps: gradient steps, each on one batch, >= 1.
        batch_size: fitting images of a step, >= 1.
        images: how many fitting images are used at most, of each side, >= 1.
        seed: of the batches.
        precision: of the gradients; see `PGD`.
    """

    region: Region
    steps: int = 200
    batch_size: int = 32
    images: int = 512
    seed: int = 0
    precision: Precision = "auto"
    perturbations: Perturbations | None = field(default=None, init=False, repr=False, compare=False)
    keeps_clean = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "batch_size", "images"):
            check_count(name, getattr(self, name))
        if not isinstance(self.region, (Linf, L2)):
            raise UserError(
                f"region: a universal perturbation is one in Linf or L2, got {self.region.name}"
            )

    def settings(self) -> Settings:
        """Return norm, radius and the steps on the one perturbation."""
        return Settings(
            norm=self.region.title, radius=self.region.radius, steps=self.steps, restarts=1
        )

    def fit(self, detector: Detector, inliers: Tensor, outliers: Tensor) -> Universal:
        """Return the attack with perturbations for a detector.

        Args:
            detector: the detector under attack.
            inliers: images `(N, C, H, W)` in [0, 1], on which scores are lowered.
            outliers: images `(M, C, H, W)`, on which they are raised. Neither may be tested.
        """
        found = {}
        sides: dict[Direction, Tensor] = {1: inliers, -1: outliers}
        for direction, images in sides.items():
            found[int(direction)] = self.search(detector, images, direction)
        return self.holding(found)

    def holding(self, found: Perturbations) -> Universal:
        """Return the attack with perturbations `(C, H, W)` that were found, by direction."""
        fitted = replace(self)
        object.__setattr__(fitted, "perturbations", dict(found))
        return fitted

    @typed
    def search(self, detector: Detector, images: Tensor, direction: Direction) -> Tensor:
        """Return one perturbation `(C, H, W)` that makes `direction * score` small on the mean.

        Args:
            detector: the detector under attack.
            images: fitting images `(N, C, H, W)` in [0, 1].
            direction: +1 to lower scores, -1 to raise them.
        """
        images = ordinary(checked(images))
        if not len(images):
            raise UserError("images: none given to fit a universal perturbation on")
        with evaluating(detector):
            images = accepted(images, *(detector.networks or (detector,)))
            objective = own_score(detector, direction, images)[0]
            precision = resolve(self.precision, images, detector)
            batches = self._batches(len(images), direction)

            def mean(perturbation: Tensor) -> Tensor:  # (1, C, H, W) to (1,)
                chosen = images[next(batches).to(images.device)]
                return objective((chosen + perturbation).clamp(0, 1)).mean().reshape(1)

            center = torch.zeros_like(images[:1])
            minimum = minimize(
                computed_in(precision, mean),
                center,
                replace(self.region, clip=False),
                steps=self.steps,
                step_size=self.region.radius / 4,
                rule=Steepest(momentum=0.9, decay="cosine"),
                keep="last",
            )
        return minimum.images[0]

    def _batches(self, count: int, direction: Direction) -> Iterator[Tensor]:
        """Yield positions `(n,)` of batches; each pass takes all images in another order."""
        number = 0
        while True:
            source = generator(self.seed, "universal", int(direction), number)
            order = torch.randperm(count, generator=source)
            for start in range(0, count, self.batch_size):
                yield order[start : start + self.batch_size]
            number += 1

    def on_score(
        self, detector: Detector, images: Tensor, direction: Direction, indices: Tensor
    ) -> Iterator[Candidate]:
        """Yield the images with the perturbation.

        Raises: `UserError` where none was found yet.
        """
        if self.perturbations is None:
            raise UserError(
                "universal: it has no perturbation yet; call its fit(detector, inliers, outliers) "
                "with images that are not tested"
            )
        perturbation = self.perturbations[int(direction)].to(images)
        if perturbation.shape != images.shape[1:]:
            raise UserError(
                f"universal: found on images {tuple(perturbation.shape)}, got "
                f"{tuple(images.shape[1:])}"
            )
        yield Candidate((images + perturbation).clamp(0, 1), "universal")

    def on_label(
        self, net: nn.Module, images: Tensor, labels: Tensor, indices: Tensor
    ) -> Iterator[Candidate]:
        """Refuse: perturbations are found for detectors."""
        raise UserError("universal: attacks detectors, and not the classifier's labels")


def needs_fit(attack: Any) -> bool:
    """Return whether an attack has to find a perturbation before it can be used."""
    inner = attack.attack if isinstance(attack, Quantised) else attack
    return isinstance(inner, Universal) and inner.perturbations is None


def universal_of(attack: Any) -> Universal:
    """Return the universal attack that an attack is, or whose images it rounds."""
    inner = attack.attack if isinstance(attack, Quantised) else attack
    assert isinstance(inner, Universal)
    return inner


def with_perturbations(attack: Any, found: Perturbations) -> Any:
    """Return a universal attack, rounded or not, with perturbations."""
    if isinstance(attack, Quantised):
        return replace(attack, attack=with_perturbations(attack.attack, found))
    return universal_of(attack).holding(found)
