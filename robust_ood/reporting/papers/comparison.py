"""The papers' numbers beside the measured ones, with the differences between the protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from robust_ood.evaluation import Accuracy, Row
from robust_ood.reporting.numbers import rate, signed
from robust_ood.reporting.papers.published import (
    PublishedResult,
    ResultKey,
    paper,
    published_results,
    recognised,
    rounded_radius,
)
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.summary import CHANCE
from robust_ood.reporting.tables import (
    BELOW_CHANCE,
    Table,
    TableCell,
    attack_name,
    interval_text,
    names,
    titled,
)

_TITLES = {
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "fpr95": "FPR95",
    "fpr95_ood_positive": "FPR95, OOD positive",
    "detection_error": "detection error",
}

LEGEND = (
    "“Paper” is the printed number, “here” the measured one, “difference” here minus paper. AUROC "
    f"and accuracy: higher is better; the others: lower is better. {BELOW_CHANCE} Small numbers: "
    "the 95 % interval, where there is one."
)


class Match(NamedTuple):
    """A published result and the measured row with the same key."""

    published: PublishedResult
    row: Row | Accuracy


class Comparison(NamedTuple):
    """One table of a paper beside the measured numbers. words: what differs, a sentence each."""

    title: str
    words: list[str]
    table: Table


def comparisons(data: ReportData) -> list[Comparison]:
    """Return the papers' tables that have numbers to which rows of the report correspond."""
    tables = []
    # Neighbours with the same paper and number of its table.
    groups = groupby(matches(data), key=lambda match: match.published[:2])
    for (name, number), members in groups:
        tables.append(_compare(data, name, number, list(members)))
    return tables


def matches(data: ReportData) -> list[Match]:
    """Return the published results to which rows of a report correspond, in the papers' order.

    A row corresponds where network, detector, in-distribution, OOD set (or group of sets), attacked
    side, norm and radius are the same; `Comparison.words` says what else differs.
    """
    measured: dict[ResultKey, list[Row | Accuracy]] = {}
    for key, row in _measured_keys(data):
        measured.setdefault(key, []).append(row)
    matched = []
    for published in published_results():
        for row in measured.get(published.key, ()):
            matched.append(Match(published, row))
    return matched


def _measured_keys(data: ReportData) -> Iterator[tuple[ResultKey, Row | Accuracy]]:
    for row in data.sets:
        yield _key(row, row.detector, recognised(row.ood, "sets"), row.attacked), row
    for row in data.means:
        yield _key(row, row.detector, row.group, row.attacked), row
    for accuracy in data.results.classification:
        attacked = "none" if accuracy.attack == "none" else "in"
        yield _key(accuracy, "", "", attacked), accuracy


def _key(row: Row | Accuracy, detector: str, ood: str, attacked: str) -> ResultKey:
    network = recognised(row.model, "networks")
    inliers = recognised(row.id, "sets")
    if attacked == "none":
        return ResultKey(network, detector, inliers, ood, attacked, "none", 0.0)
    radius = rounded_radius(row.radius)
    return ResultKey(network, detector, inliers, ood, attacked, row.norm, radius)


def _compare(data: ReportData, name: str, number: int, members: list[Match]) -> Comparison:
    printed: set[str] = set()
    for match in members:
        printed.update(match.published.values)
    metrics = [metric for metric in _TITLES if metric in printed]
    columns = titled("Network", "Detector", "OOD set", "Attack")
    heads = [("", 4)]
    for metric in metrics:
        titles = _columns_of(metric, metrics)
        columns += titled(*titles)
        heads.append((_TITLES[metric], len(titles)))
    # Two tables of a paper can print the same number, whose lines are then the same.
    lines: dict[tuple[TableCell, ...], None] = {}
    for match in members:
        lines[tuple(_line(data, match, metrics))] = None
    title = f"{name} paper, Table {number}"
    caption = f"{title}, beside the numbers of this report"
    title_of_paper, protocol = paper(name)
    words = [f"{title_of_paper}.", *protocol, *_differences(data, members)]
    return Comparison(title, words, Table(caption, columns, list(lines), heads, LEGEND))


def _columns_of(metric: str, metrics: Sequence[str]) -> tuple[str, ...]:
    # Only the first metric has a difference: further ones would make the table too wide.
    if metric == metrics[0]:
        return ("paper", "here", "difference")
    return ("paper", "here")


def _line(data: ReportData, match: Match, metrics: Sequence[str]) -> list[TableCell]:
    row = match.row
    key = match.published.key
    cells = names(row.model, key.detector or "classifier", _ood_name(match))
    cells.append(TableCell(attack_name(row.attack)))
    for metric in metrics:
        titles = _columns_of(metric, metrics)
        if metric not in match.published.values:
            cells += [TableCell("")] * len(titles)
            continue
        printed = match.published.values[metric]
        measured = float(getattr(row, metric))
        cells.append(TableCell(rate(printed), printed))
        cells.append(_measured(data, row, metric, measured))
        if "difference" in titles:
            cells.append(TableCell(signed(measured - printed, 3), measured - printed))
    return cells


def _ood_name(match: Match) -> str:
    if not isinstance(match.row, Row):
        return ""
    ood = match.row.ood
    is_group = ood == match.published.key.ood
    if is_group:
        return f"mean of {ood}"
    return ood


def _measured(data: ReportData, row: Row | Accuracy, metric: str, value: float) -> TableCell:
    note = ""
    if isinstance(row, Row) and metric in ("auroc", "fpr95"):
        note = interval_text(data.interval(row, metric))
    below_chance = metric == "auroc" and value < CHANCE
    return TableCell(rate(value), value, note, chance=below_chance)


def _differences(data: ReportData, members: Sequence[Match]) -> list[str]:
    """Say how many images, which sets and how many steps the measured numbers have."""
    images = 0
    tested = 0  # by a classifier
    groups: dict[str, None] = {}  # in order, each once
    for match in members:
        row = match.row
        if isinstance(row, Accuracy):
            tested = max(tested, row.n)
            continue
        images = max(images, row.n_id)
        if row.ood == row.group:
            groups[row.group] = None
    if not images:
        images = tested
    sentences = [
        f"Here: {images:,} in-distribution images; the networks are those that the config at the "
        "end of this page names."
    ]
    for group in groups:
        sets = ", ".join(_measured_sets(data, group))
        printed_sets = _sets_of(members, group)
        sentences.append(
            f"The mean of {group} is over {sets} here, over {printed_sets} in the paper."
        )
    steps = set()
    for match in members:
        if match.published.steps:
            steps.add((match.published.steps, match.row.steps))
    for printed, measured in sorted(steps):
        if printed != measured:
            sentences.append(f"The attack takes {measured} steps here, {printed} in the paper.")
    return sentences


def _measured_sets(data: ReportData, group: str) -> list[str]:
    return list(dict.fromkeys(row.ood for row in data.sets if row.group == group))


def _sets_of(members: Sequence[Match], group: str) -> str:
    """Return the sets of a group in the paper, in words."""
    for match in members:
        if match.published.key.ood == group and match.published.sets:
            return match.published.sets
    return ""
