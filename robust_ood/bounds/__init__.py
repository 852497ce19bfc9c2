"""Deterministic bounds of scores under Linf attacks: guarantees that no attack can break."""

from robust_ood.bounds.gates import confidence_upper, gate_bounds
from robust_ood.bounds.interval import Interval
from robust_ood.bounds.scores import (
    energy_lower,
    energy_upper,
    guaranteed_auroc,
    logit_bounds,
    logit_differences_upper,
    logit_gap_upper,
    msp_lower,
    msp_upper,
    score_bounds,
)

__all__ = [
    "Interval",
    "confidence_upper",
    "energy_lower",
    "energy_upper",
    "gate_bounds",
    "guaranteed_auroc",
    "logit_bounds",
    "logit_differences_upper",
    "logit_gap_upper",
    "msp_lower",
    "msp_upper",
    "score_bounds",
]
