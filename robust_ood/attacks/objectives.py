"""What attackers minimise: objectives of a detector or of a classifier, one value per image.

`direction` is +1 for an attack that lowers scores (inliers made to look out-of-distribution) and -1
for one that raises them (outliers made to look in-distribution), so that an objective is always
made small. The objectives that read the detector's classifiers take the sum over the networks of an
ensemble.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.detectors import MSP, Detector, surface_of
from robust_ood.errors import UserError, unknown_name
from robust_ood.inputs import logits_of
from robust_ood.models import outputs
from robust_ood.perturb import JudgedObjective, Objective
from robust_ood.randomness import generator

Direction = Literal[1, -1]
ScoreObjectives = Callable[[Detector, Direction, Tensor], list[Objective]]
"""Detector, direction and clean images to what is minimised, one search for each."""


def own_score(detector: Detector, direction: Direction, images: Tensor) -> list[Objective]:
    """Return the detector's surrogates, signed: the adaptive, white-box objectives."""
    surrogates = surface_of(detector).surrogates
    return [partial(_signed, direction, surrogate) for surrogate in surrogates]


def unmoved_score(detector: Detector, direction: Direction, images: Tensor) -> list[Objective]:
    """Return the surrogates without the detector's own movement of the input.

    ODIN, PRO and Mahalanobis noise move it. Source: how the ALOE paper's Alg. 2 attacks
    Mahalanobis; its code differentiates the score and ignores the input noise.
    """
    surface = surface_of(detector)
    surrogates = surface.unmoved
    if surrogates is None:
        surrogates = surface.surrogates
    return [partial(_signed, direction, surrogate) for surrogate in surrogates]


def softmax(detector: Detector, direction: Direction, images: Tensor) -> list[Objective]:
    """Return the ALOE paper's softmax objectives (Alg. 1) of the detector's classifiers.

    Inliers: the cross-entropy from the uniform distribution to the softmax. Outliers: the entropy
    of the softmax. Both on untempered logits.
    """
    loss = losses.entropy
    if direction == 1:
        loss = losses.cross_entropy_to_uniform
    return _summed([partial(_of_logits, loss, net) for net in classifiers(detector, "softmax")])


def maximum_probability(
    detector: Detector, direction: Direction, images: Tensor
) -> list[Objective]:
    """Return the log-odds of the largest softmax probability, signed: an attack through MSP."""
    objectives: list[Objective] = []
    for net in classifiers(detector, "msp"):
        objectives.append(partial(_signed, direction, MSP(net).surrogate))
    return _summed(objectives)


def tied_classes(detector: Detector, direction: Direction, images: Tensor) -> list[Objective]:
    """Return the objective of a tie between the three classes that are likeliest on clean images.

    Softmax scores, ODIN's above all, are lowest where several classes are equally likely. The score
    itself climbs towards one class at a time on the way there. For outliers it is the log-odds of
    the largest probability.
    """
    if direction == -1:
        return maximum_probability(detector, direction, images)
    return _summed([_spread_of_top(net, images) for net in classifiers(detector, "tied")])


def _spread_of_top(net: nn.Module, images: Tensor) -> Objective:
    with torch.no_grad():
        logits = logits_of(net(images))
        top = logits.topk(min(3, logits.shape[1]), dim=1).indices  # (N, 3)

    def objective(x: Tensor) -> Tensor:
        chosen = losses.wide(logits_of(net(x))).gather(1, top)  # (N, 3)
        return (chosen - chosen.mean(1, keepdim=True)).square().sum(1)

    return objective


def features(detector: Detector, direction: Direction, images: Tensor) -> list[Objective]:
    """Return the objective of matching penultimate features.

    Inliers: minus the squared distance to the image's own features, away from the in-distribution
    (flat at the clean image, so it needs a random start). Outliers: minus the cosine between the
    features and the head's weights of the class predicted first, which stand for that class's mean
    features without any in-distribution image at hand.
    """
    objectives = []
    for net in classifiers(detector, "features"):
        objectives.append(_feature_distance(net, direction, images))
    return _summed(objectives)


def _feature_distance(net: nn.Module, direction: Direction, images: Tensor) -> Objective:
    with torch.no_grad():
        clean = outputs(net, images)
    clean_features = clean.features  # (N, D)
    weights = clean.head.weight.detach()  # (K, D)
    prototypes = (weights - weights.mean(0))[clean.logits.argmax(1)]  # (N, D)

    def objective(x: Tensor) -> Tensor:
        reached = losses.wide(outputs(net, x).features)
        if direction == 1:
            return -(reached - clean_features).square().sum(1)
        return -F.cosine_similarity(reached, prototypes)

    return objective


def _ratio(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the DLR loss, or the margin where there are too few classes for it."""
    if logits.shape[1] >= 3:
        return losses.difference_of_logits_ratio(logits, labels)
    return losses.margin(logits, labels)


SCORE_OBJECTIVES: dict[str, ScoreObjectives] = {
    "score": own_score,
    "unmoved": unmoved_score,
    "softmax": softmax,
    "msp": maximum_probability,
    "tied": tied_classes,
    "features": features,
}
READ_CLASSIFIERS = {"softmax", "msp", "tied", "features"}
LABEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, labels: -losses.cross_entropy(logits, labels),
    "margin": losses.margin,
    "dlr": losses.difference_of_logits_ratio,
    "dlr_or_margin": _ratio,
}


def wrong_label(net: nn.Module, labels: Tensor, loss: str) -> Objective:
    """Return the objective of an untargeted attack on a classifier, small where it errs."""
    if loss not in LABEL_LOSSES:
        raise unknown_name("loss", loss, LABEL_LOSSES)
    signed = LABEL_LOSSES[loss]
    return lambda images: signed(logits_of(net(images)), labels)


def wrong_label_judged(net: nn.Module, labels: Tensor, loss: str) -> JudgedObjective:
    """Return the same with the true class's margin, from one pass."""
    signed = LABEL_LOSSES[loss]

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(net(images))
        return signed(logits, labels), losses.margin(logits, labels)

    return both


def expected(objective: Objective, sigma: float, draws: int, seed: int) -> Objective:
    """Return the mean of an objective over noisy copies of the images, `draws` at each use.

    Source: expectation over transformations, Athalye et al. 2018; the smoothed attack of Salman et
    al. 2019. With `sigma` 0 it averages repeated evaluations of an objective that is random itself.
    """
    uses = count()

    def mean(images: Tensor) -> Tensor:
        source = generator(seed, "expectation", next(uses))
        noise = sigma * torch.randn((draws, *images.shape[1:]), generator=source).to(images)
        values = [objective(images + draw) for draw in noise]  # each (N,)
        return torch.stack(values).mean(0)

    return mean


def _of_logits(loss: Callable[[Tensor], Tensor], net: nn.Module, images: Tensor) -> Tensor:
    return loss(logits_of(net(images)))


def classifiers(detector: Detector, objective: str) -> tuple[nn.Module, ...]:
    """Return the classifiers that a detector reads, or raise `UserError` where it names none."""
    if not detector.classifiers:
        raise UserError(
            f"objective: {type(detector).__name__} reads no classifier, so {objective!r} cannot "
            "attack it"
        )
    return detector.classifiers


def _signed(direction: Direction, score: Objective, images: Tensor) -> Tensor:
    return direction * score(images)


def _summed(objectives: list[Objective]) -> list[Objective]:
    def total(images: Tensor) -> Tensor:
        values = [objective(images) for objective in objectives]  # each (N,)
        return torch.stack(values).sum(0)

    return [total]
