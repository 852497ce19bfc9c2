"""What attackers minimise: objectives of a detector or of a classifier, one value per image.

`direction` is +1 for an attack that lowers scores (inliers made to look out-of-distribution) and -1 for one that raises
them (outliers made to look in-distribution), so that an objective is always made small.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors import Detector
from robust_ood.errors import UserError, unknown_name
from robust_ood.perturb import Objective

Direction = Literal[1, -1]


def own_score(detector: Detector, direction: Direction) -> list[Objective]:
    """Return the detector's surrogates, signed: the adaptive, white-box objectives."""

    def signed(surrogate: Objective) -> Objective:
        return lambda images: direction * surrogate(images)

    return [signed(surrogate) for surrogate in detector.surrogates]


def softmax(detector: Detector, direction: Direction) -> list[Objective]:
    """Return the ALOE paper's softmax objective (Alg. 1) of the detector's classifiers.

    Inliers: the cross-entropy from the uniform distribution to the softmax. Outliers: the entropy of the softmax. Both on
    untempered logits; the sum over the networks of an ensemble.
    """
    networks = detector.networks
    if not networks:
        raise UserError(f"objective: {type(detector).__name__} reads no classifier, so 'softmax' cannot attack it")
    loss = losses.cross_entropy_to_uniform if direction == 1 else losses.entropy

    def objective(images: Tensor) -> Tensor:
        return torch.stack([loss(net(images)) for net in networks]).sum(0)

    return [objective]


SCORE_OBJECTIVES = {"score": own_score, "softmax": softmax}
LABEL_LOSSES = {
    "cross_entropy": lambda logits, labels: -losses.cross_entropy(logits, labels),
    "margin": losses.margin,
    "dlr": losses.difference_of_logits_ratio,
}


def wrong_label(net: nn.Module, labels: Tensor, loss: str) -> Objective:
    """Return the objective of an untargeted attack on a classifier: the named loss, signed so that small means wrong."""
    if loss not in LABEL_LOSSES:
        raise unknown_name("loss", loss, LABEL_LOSSES)
    signed = LABEL_LOSSES[loss]
    return lambda images: signed(net(images), labels)
