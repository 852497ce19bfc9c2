"""Attacks by their published names: settings of `PGD`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from robust_ood.arguments import typed
from robust_ood.attacks.budget import Steps
from robust_ood.attacks.pgd import PGD, LabelLoss, ScoreObjective
from robust_ood.attacks.precision import Precision
from robust_ood.regions import L1, Fraction, Region
from robust_ood.rules import AutoPGD


@typed
def fgsm(
    region: Region, *, random_start: bool = False, seed: int = 0, precision: Precision = "auto"
) -> PGD:
    """Return the settings of one step of the region's radius. Source: Goodfellow et al. 2015."""
    return PGD(
        region,
        steps=1,
        step_size=region.radius,
        random_start=random_start,
        seed=seed,
        precision=precision,
    )


@typed
def apgd(
    region: Region,
    *,
    steps: int = 100,
    restarts: int = 1,
    objective: ScoreObjective = "score",
    loss: LabelLoss = "cross_entropy",
    seed: int = 0,
    precision: Precision = "auto",
) -> PGD:
    """Return the settings of Auto-PGD: the first step is twice the radius, later ones adapt.

    In L1 it is the radius. Source: Croce and Hein 2020, Alg. 1, and 2021, Alg. 1 for L1. The
    arguments are those of `PGD`.
    """
    longest = region.radius if isinstance(region, L1) else 2 * region.radius
    return PGD(
        region,
        steps=steps,
        step_size=longest,
        restarts=restarts,
        objective=objective,
        loss=loss,
        rule=AutoPGD(),
        seed=seed,
        precision=precision,
    )


@typed
def transferred(
    attack: PGD, source: Literal["msp", "softmax", "unmoved", "features"] = "msp"
) -> PGD:
    """Return the attack through another objective, without a look at the true score.

    Args:
        attack: region, steps and restarts.
        source: what is attacked instead of the detector: its classifier's MSP, the softmax
            objectives of the ALOE paper, the detector without its input movement, or its features.
    """
    return replace(attack, objective=source, keep="objective")


@typed
def aloe_softmax(
    region: Region,
    *,
    steps: Steps = 10,
    step_size: float | Fraction = 1 / 255,
    seed: int = 0,
    precision: Precision = "auto",
) -> PGD:
    """Return the attack on softmax scores as published, for MSP and ODIN.

    Source: ALOE paper Alg. 1. Random start, steps of 1/255, the last iterate, transferred: ODIN is
    scored on images made without its temperature and its input noise. The random start is not
    rounded to whole pixel levels, which the public code does.
    """
    return PGD(
        region,
        steps=steps,
        step_size=step_size,
        objective="softmax",
        keep="last",
        seed=seed,
        precision=precision,
    )


@typed
def aloe_mahalanobis(
    region: Region,
    *,
    steps: Steps = 10,
    step_size: float | Fraction = 1 / 255,
    seed: int = 0,
    precision: Precision = "auto",
) -> PGD:
    """Return the published attack on the Mahalanobis regression, through all but the input noise.

    Source: ALOE paper Alg. 2. The regression's log-odds stand for its cross-entropy, whose gradient
    has the same sign.
    """
    return PGD(
        region,
        steps=steps,
        step_size=step_size,
        objective="unmoved",
        keep="last",
        seed=seed,
        precision=precision,
    )
