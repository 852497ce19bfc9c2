"""Scores of single images, the sets of a group together, and the attack that hurts the most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robust_ood.reporting.report_data import GROUPS, ReportData, SetScores

ScoresBySide = dict[str, NDArray[np.float64]]


def strongest_attack(data: ReportData, model: str, detector: str) -> str | None:
    """Return the attack with the lowest AUROC on any group."""
    attacked = []
    for group in data.groups:
        row = data.worst(model, detector, group)
        if row is not None:
            attacked.append(row)
    if not attacked:
        return None
    return min(attacked, key=lambda row: row.auroc).attack


def pooled(sets: list[SetScores]) -> ScoresBySide:
    """Return the scores of each side, all sets of a group together."""
    sides = {}
    for side in ("id", *GROUPS):
        values = [scores.values for scores in sets if scores.group == side]
        if values:
            sides[side] = np.concatenate(values)
    return sides
