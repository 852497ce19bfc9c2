"""A guard: network, detector and threshold as one module that accepts or rejects images."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_ood.deployment.description import Description
from robust_ood.deployment.tolerance import calibration_ranks
from robust_ood.detectors import Detector, OutputsDetector
from robust_ood.detectors.contract import full_precision, widened
from robust_ood.inputs import accepted as accepted_by
from robust_ood.models import outputs


class Decision(NamedTuple):
    """What a guard says of a batch of images.

    scores: `(N,)`, higher = in-distribution. accepted: `(N,)`, whether the score is at least the
    threshold. classes: `(N,)`, the predicted class, of rejected images, too. probabilities: the
    softmax `(N, K)`.
    """

    scores: Tensor
    accepted: Tensor
    classes: Tensor
    probabilities: Tensor

    @property
    def confidence(self) -> Tensor:
        """The predicted class's probability, `(N,)`."""
        return self.probabilities.amax(1)


class Guard(nn.Module):
    """Images to decisions, without gradients.

    An image's decision does not depend on the other images of its batch, on their order, on the
    number of threads, or on whether pixels are uint8 or floats, beyond the rounding of float32:
    `description.rounding` is what was measured at calibration, and the threshold is lower by it,
    so that rounding rejects no calibration image. Of scores larger than those of calibration it
    grows in proportion.

    Args:
        net: classifier, `(N, C, H, W)` in [0, 1] to logits.
        detector: fitted, of that network.
        description: threshold, preprocessing, class names, and what was measured.
        calibration: sorted scores `(M,)` of the calibration images.
    """

    threshold: Tensor
    calibration: Tensor

    def __init__(
        self, net: nn.Module, detector: Detector, description: Description, calibration: Tensor
    ) -> None:
        super().__init__()
        self.net = net
        self.detector = detector
        # While an export is traced, torch hands out stand-ins for submodules, of which nothing is
        # remembered, such as a network's head. A tuple's modules are the real ones.
        self._parts = (net, detector)
        self._one_pass = isinstance(detector, OutputsDetector) and detector.net is net
        self.description = description
        self.register_buffer("threshold", torch.tensor(description.threshold.value).float())
        self.register_buffer("calibration", calibration.double())
        self.eval()

    def forward(self, images: Any) -> Decision:
        """Return the decisions of images of any size that the preprocessing takes.

        Args:
            images: `(N, C, H, W)` or `(N, H, W, C)`, uint8 or floats in [0, 1].

        Raises: `UserError` for anything else.
        """
        prepared = self.description.preprocessing.tensor(images)
        with torch.no_grad():
            return self.decide(prepared.to(self.threshold.device))

    def decide(self, images: Tensor) -> Decision:
        """Return the decisions of prepared images, float32 `(N, C, H, W)` in [0, 1]."""
        scores, logits = self._scored(images)
        return Decision(
            scores,
            scores >= self.threshold,
            logits.argmax(1),
            logits.float().softmax(1),
        )

    def ranks(self, scores: Tensor) -> Tensor:
        """Return the share of the calibration images that score lower, `(N,)` in [0, 1]."""
        return calibration_ranks(self.calibration, scores)

    def class_name(self, index: int) -> str:
        """Return a class's name, or its number where it has none."""
        names = self.description.class_names
        return names[index] if index < len(names) else str(index)

    def train(self, mode: bool = True) -> Guard:
        """Stay in eval mode: a decision may not depend on the other images of a batch."""
        return super().train(False)

    def _scored(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores `(N,)` and logits `(N, K)`, by one forward pass where that is enough."""
        net, detector = self._parts
        if self._one_pass and isinstance(detector, OutputsDetector):
            out = outputs(net, images, detector.layers)
            with full_precision(images):
                return detector.score(widened(out)), out.logits
        logits = net(accepted_by(images, net))
        return detector(images), logits
