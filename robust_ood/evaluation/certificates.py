"""Certificates that an evaluation can be asked for: their settings, as configs write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from robust_ood import bounds
from robust_ood.attacks import PGD
from robust_ood.certify.bounds import Question, read_radii
from robust_ood.certify.confidence import bonferroni
from robust_ood.certify.noise import Noise
from robust_ood.detectors import Detector
from robust_ood.detectors.smoothing import (
    Smoothed,
    check_draws,
    check_share,
    checked_sigma,
    refuse_smoothed,
)
from robust_ood.errors import UserError, unknown_name
from robust_ood.regions import L2, Fraction, Linf
from robust_ood.settings import PartSpec, configured, read_part

_SCORE_DRAWS = 100
"""Draws of the smoothed score that is attacked: at most these, because each step takes them all."""


class SmoothingCertificate:
    """Bounds of smoothed scores by order statistics, and PGD in L2 through the smoothed detector.

    Args:
        sigma: standard deviation of the noise in pixel fractions, > 0.
        radius: one L2 radius, or several that share the draws.
        draws: noisy copies of each image that certify it.
        alpha: the probability with which a certified rate may fail, in (0, 1); each bound of an
            image fails with this divided by the number of images (Bonferroni).
        quantile: the score is this quantile under noise, in (0, 1).
        seed: of the draws.
        norm: "L2"; Gaussian noise certifies no other.
        steps: of the attack.
        score_draws: draws of the smoothed score that is attacked; by default those that certify, at
            most 100.
        gradient_draws: draws of each of the attack's gradients.

    Raises:
        UserError: a value out of range.
    """

    name = "smoothing"
    kind = "certified"

    def __init__(  # noqa: PLR0913  # what a certificate depends on
        self,
        sigma: float | str,
        radius: float | str | Sequence[float | str],
        draws: int = 10_000,
        alpha: float = 0.001,
        quantile: float = 0.5,
        seed: int = 0,
        norm: str = "L2",
        steps: int = 10,
        score_draws: int | None = None,
        gradient_draws: int = 8,
    ) -> None:
        self.sigma = checked_sigma(sigma)
        self.radii = _radii(radius)
        check_draws("draws", draws)
        check_share("alpha", alpha)
        check_share("quantile", quantile)
        self.draws = draws
        self.alpha = alpha
        self.quantile = quantile
        self.seed = seed
        self.norm = norm
        self.steps = steps
        self.score_draws = score_draws or min(draws, _SCORE_DRAWS)
        check_draws("score_draws", self.score_draws)
        check_draws("gradient_draws", gradient_draws)
        check_draws("steps", steps)
        self.gradient_draws = gradient_draws

    def smoothed(self, detector: Detector) -> Smoothed:
        """Return the smoothed detector that is attacked."""
        return Smoothed(
            detector,
            self.sigma,
            self.score_draws,
            self.quantile,
            self.seed,
            gradient_draws=self.gradient_draws,
        )

    def title(self, label: str) -> str:
        """Return what rows call a smoothed detector."""
        name = f"{label} smoothed {self.sigma:g}"
        if self.quantile != 0.5:
            name += f" quantile {self.quantile:g}"
        return name

    def attacks(self) -> dict[str, PGD]:
        """Return the attack at each radius, by label."""
        made = {}
        for radius in self.radii:
            made[f"pgd-L2-{radius:g}"] = PGD(L2(radius), steps=self.steps, seed=self.seed)
        return made

    def bound_alpha(self, images: int) -> float:
        """Return the alpha of one bound, for a rate of so many images to fail with `alpha`."""
        return bonferroni(self.alpha, images)

    def check(self, detectors: Mapping[str, Detector], image: Tensor, images: int) -> None:
        """Raise `UserError` for what cannot be certified.

        Args:
            detectors: by label, fitted.
            image: `(1, C, H, W)`, to see which detectors are random.
            images: of the largest rate, both sides together.
        """
        read_radii(self.radii, self.norm, image)
        for detector in detectors.values():
            refuse_smoothed(detector)
        Question(self.radii, self.sigma, self.draws, self.bound_alpha(images), self.quantile)
        Noise(self.sigma, self.seed, 2).refuse_random(detectors, image[0])

    def question(self) -> dict[str, Any]:
        """Return what the bounds depend on, beside network, images and confidence."""
        settings = ("sigma", "radii", "draws", "quantile", "seed")
        return {name: getattr(self, name) for name in settings}


class IntervalCertificate:
    """Guaranteed bounds of the detector's own score under Linf, by interval arithmetic.

    Args:
        radius: one Linf radius in pixel fractions, or several.

    Raises:
        UserError: a radius below 0.
    """

    name = "interval"
    kind = "guaranteed"

    def __init__(self, radius: float | str | Sequence[float | str]) -> None:
        self.radii = _radii(radius)

    def attacks(self) -> dict[str, PGD]:
        """Return an attack for each radius, by label."""
        return {f"pgd-Linf-{radius:.4g}": PGD(Linf(radius)) for radius in self.radii}

    def bounded(self, detectors: Mapping[str, Detector]) -> list[str]:
        """Return the labels of the detectors whose scores have interval bounds."""
        kinds = ("MSP", "Energy", "MaxLogit")
        return [label for label, member in detectors.items() if type(member).__name__ in kinds]

    def check(self, detectors: Mapping[str, Detector], image: Tensor) -> None:
        """Raise `UserError` where no detector, or a layer of the network, has interval bounds."""
        labels = self.bounded(detectors)
        if not labels:
            raise UserError(
                f"detectors: {', '.join(detectors)} have no interval bounds; accepted: msp, "
                "energy, max_logit"
            )
        for label in labels:
            bounds.score_bounds(detectors[label], image, self.radii[0])


Certificate = SmoothingCertificate | IntervalCertificate
CERTIFICATES: dict[str, Callable[..., Certificate]] = {
    "smoothing": SmoothingCertificate,
    "interval": IntervalCertificate,
}


@dataclass(frozen=True)
class Cost:
    """What certificates cost: forward passes of one image, and their seconds where measured."""

    passes: int
    seconds: float | None = None

    def __str__(self) -> str:
        text = f"{self.passes:,} forward passes"
        if self.seconds is None:
            return text
        return f"{text}, about {self.seconds / 60:.1f} minutes"


def build_certificates(specs: Sequence[PartSpec]) -> list[Certificate]:
    """Return certificates from a config's list: `{name: smoothing, sigma: 0.25, radius: [0.1]}`.

    Raises: `UserError` naming the field for unknown names and settings, and for one given twice.
    """
    made: list[Certificate] = []
    titles = set()
    for spec in specs:
        part = read_part("certificates", spec)
        if part.name not in CERTIFICATES:
            raise unknown_name("certificates", part.name, CERTIFICATES)
        make = CERTIFICATES[part.name]
        certificate = configured(f"certificates.{part.name}", make, settings=part.settings)
        title = certificate.name
        if isinstance(certificate, SmoothingCertificate):
            title = certificate.title("")
        if title in titles:
            raise UserError(
                f"certificates: {part.name} is there twice with the same noise; list its radii in "
                "one: radius: [0.1, 0.25]"
            )
        titles.add(title)
        made.append(certificate)
    return made


def _radii(radius: float | str | Sequence[float | str]) -> tuple[float, ...]:
    given = radius
    if isinstance(given, str) or not isinstance(given, Sequence):
        given = [given]
    radii = tuple(float(Fraction(number)) for number in given)
    if not radii:
        raise UserError("radius: [] lists no radius; expected one or several")
    for number in radii:
        if not 0 <= number < float("inf"):
            raise UserError(f"radius: {number:g} is not a radius >= 0 in pixel fractions")
    if len(set(radii)) < len(radii):
        raise UserError("radius: one is there twice")
    return radii
