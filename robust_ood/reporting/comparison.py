"""The papers' numbers beside the measured ones: tables, and in words what differs in the
protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from robust_ood.evaluation import Accuracy, Row
from robust_ood.reporting.published import Pair, content, pairs
from robust_ood.reporting.source import Source
from robust_ood.reporting.summary import CHANCE, rate
from robust_ood.reporting.tables import Cell, Table

_TITLES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "fpr95": "FPR95",
    "fpr95_ood_positive": "FPR95, OOD positive",
    "detection_error": "detection error",
}


class Comparison(NamedTuple):
    """One table of a paper beside the measured numbers. words: what differs, a sentence each."""

    title: str
    words: list[str]
    table: Table


def comparisons(source: Source) -> list[Comparison]:
    """Return the papers' tables that have numbers to which rows of the report correspond."""
    found = groupby(pairs(source), key=lambda pair: (pair.printed.paper, pair.printed.table))
    return [_compare(source, paper, table, list(members)) for (paper, table), members in found]


def _compare(source: Source, paper: str, table: int, members: list[Pair]) -> Comparison:
    about = content()["papers"][paper]
    metrics = [name for name in _TITLES if any(name in pair.printed.values for pair in members)]
    columns = [("Network", ""), ("Detector", ""), ("OOD set", ""), ("Attack", "")]
    for name in metrics:
        columns += [
            ("paper", ""),
            ("here", ""),
            *([("difference", "")] if name == metrics[0] else []),
        ]
    heads = [("", 4), *((_TITLES[name], 3 if name == metrics[0] else 2) for name in metrics)]
    lines = list(dict.fromkeys(tuple(_line(source, pair, metrics)) for pair in members))
    title = f"{paper} paper, Table {table}"
    return Comparison(title, [f"{about['title']}.", *about["protocol"], *_here(source, members)],
                      Table(f"{title}, beside the numbers of this report", columns, lines, heads))  # fmt: skip


def _line(source: Source, pair: Pair, metrics: Sequence[str]) -> list[Cell]:
    row, values = pair.row, pair.printed.values
    ood = row.ood if isinstance(row, Row) else ""
    shown = f"mean of {ood}" if ood and ood == pair.printed.setting.ood else ood
    names = [
        row.model,
        pair.printed.setting.detector or "classifier",
        shown,
        "clean" if row.attack == "none" else row.attack,
    ]
    cells = [Cell(name, name=True) for name in names[:3]] + [Cell(names[3])]
    for name in metrics:
        if name not in values:
            cells += [Cell("")] * (3 if name == metrics[0] else 2)
            continue
        measured = float(getattr(row, name))
        cells += [Cell(rate(values[name]), values[name]), _measured(source, row, name, measured)]
        if name == metrics[0]:
            change = measured - values[name]
            cells.append(Cell(f"{change:+.3f}".replace("-", "\N{MINUS SIGN}"), change))
    return cells


def _measured(source: Source, row: Row | Accuracy, metric: str, value: float) -> Cell:
    found = (
        source.interval(row, metric)
        if isinstance(row, Row) and metric in ("auroc", "fpr95")
        else None
    )
    note = f"{rate(found[0])}\N{EN DASH}{rate(found[1])}" if found else ""
    return Cell(rate(value), value, note, chance=metric == "auroc" and value < CHANCE)


def _here(source: Source, members: Sequence[Pair]) -> list[str]:
    """Say how many images, which sets and which steps the measured numbers are of."""
    rows = [pair.row for pair in members if isinstance(pair.row, Row)]
    n_id = max((row.n_id for row in rows), default=0) or max(
        getattr(pair.row, "n", 0) for pair in members
    )
    words = [
        f"Here: {n_id:,} in-distribution images; the networks are those that the config at the end names."
    ]
    for group in dict.fromkeys(row.group for row in rows if row.ood == row.group):
        here = list(dict.fromkeys(row.ood for row in source.sets if row.group == group))
        theirs = next(
            (p.printed.sets for p in members if p.printed.setting.ood == group and p.printed.sets),
            "",
        )
        words.append(
            f"The mean of {group} is over {', '.join(here)} here, over {theirs} in the paper."
        )
    steps = {(pair.printed.steps, pair.row.steps) for pair in members if pair.printed.steps}
    words += [
        f"The attack takes {own} steps here, {their} in the paper."
        for their, own in sorted(steps)
        if their != own
    ]
    return words
