"""A classifier that is as sure as its gate lets it be, and uniform elsewhere."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.losses import wide
from robust_ood.models.heads import find_head


class Gated(nn.Module):
    """`p(y|x) = s p_f(y|x) + (1 - s) / K` with `s = sigmoid(gate(x) + shift)`, as logarithms.

    Images `(N, C, H, W)` in [0, 1] to log-probabilities `(N, K)`, so that the maximum softmax
    probability of this network is the joint confidence. It is at most `(K - 1) / K s + 1 / K`
    whatever the classifier says: a bound of the gate is a bound of the confidence.

    Source: ProoD (Meinke et al. 2022), Eq. 5, with a discriminator as the gate; CCU (Meinke and
    Hein 2020), Eq. 3, with a log-ratio of densities (`MixtureRatio`).

    Args:
        classifier: images to logits `(N, K)`.
        gate: images to one number each, `(N,)` or `(N, 1)`, higher = more in-distribution.
        shift: added to the gate's output; ProoD's bias shift.
    """

    @typed
    def __init__(self, classifier: nn.Module, gate: nn.Module, shift: float = 0.0) -> None:
        super().__init__()
        for name, part in (("classifier", classifier), ("gate", gate)):
            if not isinstance(part, nn.Module):
                raise UserError(f"{name}: expected a torch.nn.Module, got {type(part).__name__}")
        if not math.isfinite(shift):
            raise UserError(f"shift: expected a finite number, got {shift}")
        self.classifier = classifier
        self.gate = gate
        self.shift = float(shift)
        layers = getattr(classifier, "feature_layers", ())
        self.feature_layers = tuple(f"classifier.{name}" for name in layers)

    @property
    def settings(self) -> dict[str, Any]:
        """What builds this network again."""
        return {"classifier": self.classifier, "gate": self.gate, "shift": self.shift}

    @property
    def head(self) -> nn.Linear:
        """The classifier's last linear layer."""
        return find_head(self.classifier)

    def gate_logits(self, images: Tensor) -> Tensor:
        """Return the shifted output of the gate, `(N,)`."""
        return wide(self.gate(images)).reshape(len(images)) + self.shift

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities `(N, K)`."""
        log_p = F.log_softmax(wide(logits_of(self.classifier(images))), dim=1)
        gate = self.gate_logits(images)[:, None].to(log_p.dtype)  # (N, 1)
        inside = F.logsigmoid(gate) + log_p
        outside = F.logsigmoid(-gate) - math.log(log_p.shape[1])
        return torch.logaddexp(inside, outside)
