"""Detectors that move the image before they score it: ODIN, input noise for any score, and PRO.

Each moves the image by a call of the engine, whose result carries no gradient. Attackers get a
surrogate that treats the movement as a constant (straight-through): its value is the score at the
very point where the detector reads it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface, surface_of
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.softmax import MSP
from robust_ood.detectors.wrapper import Wrapper
from robust_ood.errors import UserError
from robust_ood.models import Normalize
from robust_ood.models.wrap import Network
from robust_ood.modes import ordinary
from robust_ood.perturb import minimize
from robust_ood.regions import Fraction, Unbounded


class Moved(Wrapper):
    """A detector that scores an image near the given one, which `move` finds."""

    @abstractmethod
    def move(self, images: Tensor) -> Tensor:
        """Return the images that are scored instead, `(N, C, H, W)`, detached."""

    def surrogate(self, images: Tensor) -> Tensor:
        """Return the wrapped surrogate `(N,)` at the moved images, with the movement constant."""
        return self.detector.surrogate(self.moved(images))

    def attack_surface(self) -> AttackSurface:
        """Return the surrogate, then those of the wrapped detector at the unmoved image.

        Where the movement crosses a class boundary, the surrogate's gradient raises now one class
        and now another. An attack that follows it alone can end weaker than one transferred from
        the wrapped detector.
        """
        wrapped = surface_of(self.detector)
        # Of nested movements, the innermost detector says what is unmoved.
        unmoved = wrapped.unmoved
        if unmoved is None:
            unmoved = wrapped.surrogates
        return AttackSurface((self.surrogate, *wrapped.surrogates), wrapped.exact, unmoved)

    def forward(self, images: Tensor) -> Tensor:
        """Return the wrapped detector's scores `(N,)` at the moved images."""
        scores: Tensor = self.detector(self.moved(images))
        return scores

    def published_forward(self, images: Tensor) -> Tensor:
        """Return the wrapped detector's published values `(N,)` at the moved images."""
        return self.detector.published_forward(self.moved(images))

    def moved(self, images: Tensor) -> Tensor:
        """Return the moved images `(N, C, H, W)`, with the movement constant for gradients."""
        movement = self.move(images) - ordinary(images)  # without gradient
        return images + movement


@dataclass(frozen=True)
class _PositiveAtZero(Unbounded):
    """Sign steps that count sign(0) as +1, as the public ODIN code does."""

    def steepest(self, gradient: Tensor) -> Tensor:
        return torch.where(gradient >= 0, 1.0, -1.0).to(gradient.dtype)


@dataclass(frozen=True)
class _LargestOnly(Unbounded):
    """Sign steps of the one value of each image that has the largest gradient."""

    def steepest(self, gradient: Tensor) -> Tensor:
        flat = gradient.flatten(1)
        chosen = flat.abs().argmax(1, keepdim=True)  # (N, 1)
        mask = torch.zeros_like(flat).scatter(1, chosen, 1.0)
        return (mask * flat.sign()).view_as(gradient)


class InputNoise(Moved):
    """Any score after one sign step that raises it: `score(x + magnitude sign(grad score(x)))`.

    The scores are as the wrapped detector's. Source: Liang et al. 2018 for MSP (ODIN), Lee et al.
    2018 for Mahalanobis (ALOE appendix, between Eq. 8 and 9).

    Args:
        detector: the score to raise, then to read.
        magnitude: size of the step in pixel fractions, >= 0.
        clip: whether the moved image is clipped to [0, 1]; the public codes do not clip.
        zero_is_positive: count sign(0) of the gradient of minus the score as +1, as the public ODIN
            code does.
    """

    @typed
    def __init__(
        self,
        detector: Detector,
        magnitude: float | str,
        *,
        clip: bool = False,
        zero_is_positive: bool = False,
    ) -> None:
        super().__init__(detector)
        self.magnitude = float(Fraction(magnitude, "magnitude"))
        if self.magnitude < 0:
            raise UserError(f"magnitude: expected a number >= 0, got {magnitude}")
        region = _PositiveAtZero if zero_is_positive else Unbounded
        self.region = region(clip=clip)

    def move(self, images: Tensor) -> Tensor:
        """Return the images after the step."""
        # Without a step there is nothing to differentiate.
        if self.magnitude == 0:
            return ordinary(images)
        moved = minimize(
            lambda images: -self.detector.surrogate(images),
            images,
            self.region,
            steps=1,
            step_size=self.magnitude,
            keep="last",
        )
        return moved.images


class ODIN(InputNoise):
    """The MSP with a temperature after a small step that raises it, as log-odds, >= 0.

    Source: Liang et al. 2018; ALOE Eq. 6 and 7. The step follows the sign of the gradient of log S,
    which is the sign of the gradient of the log-odds. The published value is the probability S, in
    (1/K, 1], which `published` gives; as for `MSP`, the log-odds order images alike and do not tie.

    Args:
        net: classifier, images to logits.
        temperature: T, > 0; 1000 in the papers.
        magnitude: eta in pixel fractions: 0.0014 for CIFAR-10, 0.0028 for CIFAR-100, 0.0004 for
            GTSRB (ALOE's code).
        clip: whether the moved image is clipped to [0, 1]; the public code does not clip.
        reference: count sign(0) as +1, as the public code does.
    """

    @typed
    def __init__(
        self,
        net: Network,
        temperature: float = 1000.0,
        magnitude: float | str = 0.0014,
        *,
        clip: bool = False,
        reference: bool = False,
    ) -> None:
        super().__init__(MSP(net, temperature), magnitude, clip=clip, zero_is_positive=reference)


class IODIN(InputNoise):
    """ODIN whose step moves one value of the image, as log-odds, >= 0.

    Source: OpenOOD's `iodin`: only the pixel and channel with the largest gradient is moved.

    Args:
        net: classifier, images to logits.
        temperature: T, > 0; 1000 in OpenOOD.
        magnitude: of the step in pixel fractions, >= 0.
        clip: whether the moved image is clipped to [0, 1]; OpenOOD does not clip.
    """

    @typed
    def __init__(
        self,
        net: Network,
        temperature: float = 1000.0,
        magnitude: float | str = 0.0014,
        *,
        clip: bool = False,
    ) -> None:
        super().__init__(MSP(net, temperature), magnitude)
        self.region = _LargestOnly(clip=clip)


class PRO(Moved):
    """The smallest score on a short descent from the image (perturbation-rectified OOD detection).

    The scores are as the wrapped detector's. Source: PRO Alg. 1, Eq. 4-6: K steps `x <- x -
    step_size sign(grad g(x))`, no random start, no projection, and the minimum over all K + 1
    values, including that of the image itself.

    Args:
        detector: the score g.
        steps: K, >= 1.
        step_size: size of a step; the perturbation is at most K times as large.
        clip: whether iterates are clipped to [0, 1]; the public code does not clip.
        units: "pixels" for steps in pixel fractions; "normalised" for steps in the network's
            normalised inputs, as the paper's OpenOOD experiments use (a step of `step_size` times
            the channel's standard deviation).
    """

    @typed
    def __init__(
        self,
        detector: Detector,
        steps: int = 3,
        step_size: float | str = 1e-3,
        *,
        clip: bool = False,
        units: Literal["pixels", "normalised"] = "pixels",
    ) -> None:
        super().__init__(detector)
        if not isinstance(steps, int) or steps < 1:
            raise UserError(f"steps: expected a whole number >= 1, got {steps!r}")
        step_size = float(Fraction(step_size, "step_size"))
        if not step_size > 0:
            raise UserError(f"step_size: expected a number > 0, got {step_size}")
        if units not in ("pixels", "normalised"):
            raise UserError(f"units: expected 'pixels' or 'normalised', got {units!r}")
        self.steps = steps
        self.region = Unbounded(clip=clip)
        scale = torch.ones(1, 1, 1, 1)
        if units == "normalised":
            scale = _pixel_scale(detector)
        # A buffer moves with the network; it is a setting, so no state holds it.
        self.register_buffer("step_size", step_size * scale, persistent=False)

    def move(self, images: Tensor) -> Tensor:
        """Return each image's lowest-scoring iterate `(N, C, H, W)`."""
        return self._descend(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the lowest scores `(N,)` over the K + 1 iterates."""
        # The descent has evaluated the score at its minimum: no second forward pass.
        return self._descend(images)[1].float()

    def _descend(self, images: Tensor) -> tuple[Tensor, Tensor]:
        lowest = minimize(
            self.detector,
            images,
            self.region,
            steps=self.steps,
            step_size=self.get_buffer("step_size"),
            keep="best",
        )
        assert lowest.values is not None  # "best" always evaluates
        return lowest.images, lowest.values


def _pixel_scale(detector: Detector) -> Tensor:
    """Return the standard deviation `(1, C, 1, 1)` of a detector's normalisation layer."""
    scales = [module.std for module in detector.modules() if isinstance(module, Normalize)]
    if not scales or any(not torch.equal(scale, scales[0]) for scale in scales):
        raise UserError(
            "units: 'normalised' needs one Normalize layer in the network; "
            "wrap it with robust_ood.models.wrap"
        )
    return scales[0].detach().clone().view(1, -1, 1, 1)  # (C,) -> (1, C, 1, 1)
