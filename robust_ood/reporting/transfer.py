"""Tables of ensembles: attacks through each member, scored on each member and the ensemble."""

from __future__ import annotations

import torch

from robust_ood.evaluation.pictures import Picture
from robust_ood.evaluation.transfer import CLEAN, ENSEMBLE
from robust_ood.metrics import auroc
from robust_ood.reporting.report_data import GROUPS, ReportData
from robust_ood.reporting.tables import (
    BELOW_CHANCE,
    Table,
    TableCell,
    attack_name,
    names,
    plain_auroc,
    titled,
)

_LEGEND = (
    "AUROC of each score (a column) on a few images that were attacked through each of them (a "
    "line). On the diagonal a score meets the attack made for it; beside it one sees what "
    f"carries over (Fort 2022, Sec. 2.7). Higher is better. {BELOW_CHANCE}"
)


def transfers(data: ReportData) -> list[Table]:
    """Return a table for each ensemble that has such a picture, and each group of OOD images."""
    tables = []
    for picture in data.drawn("transfer"):
        for group in GROUPS:
            if f"{group}_scores" in picture.arrays:
                tables.append(_table(picture, group))
    return tables


def _table(picture: Picture, group: str) -> Table:
    inliers = torch.from_numpy(picture.arrays["in_scores"])  # (sources, targets, N)
    outliers = torch.from_numpy(picture.arrays[f"{group}_scores"])
    targets = [*picture.about["members"], ENSEMBLE]
    lines = []
    for row, source in enumerate([CLEAN, *targets]):
        line: list[TableCell] = names(attack_name(source))
        for column in range(len(targets)):
            line.append(plain_auroc(auroc(inliers[row, column], outliers[row, column])))
        lines.append(line)
    sides = "inliers and outliers"
    if picture.about.get("attacked") == "outliers":
        sides = "outliers"
    caption = (
        f"{picture.subject} on {picture.model}, {group} OOD: AUROC after {picture.about['attack']} "
        f"on {sides}"
    )
    heads = [("", 1), ("scored on", len(targets))]
    return Table(caption, titled("attacked through", *targets), lines, heads, _LEGEND)
