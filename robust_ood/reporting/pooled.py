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
    for side in ("id", "shifted", *GROUPS):
        values = [scores.values for scores in sets if scores.group == side]
        if values:
            sides[side] = np.concatenate(values)
    return sides


def separated(
    sides: ScoresBySide, group: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return scores of inliers and of a group's OOD sets, or None where some are missing.

    sides: as `pooled` returns them.
    """
    outliers = sides.get(group.removeprefix("full-"))
    inliers = sides.get("id")
    if inliers is None or outliers is None:
        return None
    if group.startswith("full-"):
        if "shifted" not in sides:
            return None
        inliers = np.concatenate([inliers, sides["shifted"]])
    return inliers, outliers
