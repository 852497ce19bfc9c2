"""The tables of a study: what its methods cost, how they classify, and how they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from robust_ood.evaluation import Accuracy
from robust_ood.reporting.formats import PlainTable
from robust_ood.reporting.numbers import rate, signed
from robust_ood.reporting.reference import (
    AgainstReference,
    Standing,
    against_reference,
    mean_text,
    methods_of,
)
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.significance import ATTACKED, p_value_text


def budget_table(data: ReportData, efforts: Mapping[str, tuple[str, str]]) -> PlainTable:
    """Return what each method's training took, and the accuracy of its networks.

    Args:
        data: of all methods.
        efforts: steps and minutes of a training, by method.
    """
    attacks = list(dict.fromkeys(row.attack for row in data.results.classification))
    lines = []
    for method, models in methods_of(data).items():
        steps, minutes = efforts.get(method, ("", ""))
        cells = [method, str(len(models)), steps, minutes]
        for attack in attacks:
            rows = [row for row in data.results.classification if row.attack == attack]
            cells.append(_accuracy(rows, models))
        lines.append(tuple(cells))
    titles = ["accuracy" if attack == "none" else f"accuracy, {attack}" for attack in attacks]
    columns = ("method", "networks", "steps", "minutes", *titles)
    return PlainTable("Budget and accuracy", columns, tuple(lines))


def _accuracy(rows: Sequence[Accuracy], models: Sequence[str]) -> str:
    values = [row.accuracy for row in rows if row.model in models]
    if not values:
        return ""
    if len(values) == 1:
        return rate(values[0])
    return f"{rate(fmean(values))} ± {rate(stdev(values))}"


def comparison_tables(data: ReportData, reference: str, level: float) -> list[PlainTable]:
    """Return a table for each detector, attack and group of OOD sets, the best method first.

    All sides are in it; the tests are of both sides attacked, or of clean images where nothing is.
    """
    comparisons: dict[str, list[AgainstReference]] = {}
    for attacked in ATTACKED:
        comparisons[attacked] = against_reference(data, reference, attacked, level)
    tables = []
    tested = comparisons["both"] or comparisons["none"]
    for comparison in tested:
        means = {}
        for attacked in ATTACKED:
            means[attacked] = _alike(comparison, comparisons[attacked])
        tables.append(_table(comparison, means))
    return tables


def _alike(comparison: AgainstReference, others: Sequence[AgainstReference]) -> dict[str, Standing]:
    """Return the standings of the same detector, group and attack with another side attacked."""
    for other in others:
        same = (other.detector, other.group) == (comparison.detector, comparison.group)
        if same and other.attack in (comparison.attack, "none"):
            return {standing.name: standing for standing in other.standings}
    return {}


def _table(comparison: AgainstReference, means: Mapping[str, Mapping[str, Standing]]) -> PlainTable:
    lines = []
    bold = set()
    sides = [attacked for attacked in ATTACKED if means[attacked]]
    for place, standing in enumerate(comparison.standings):
        cells = [standing.name]
        for attacked in sides:
            same = means[attacked].get(standing.name)
            cells.append("" if same is None else mean_text(same))
        change = ("", "", "", "the reference")
        if standing.verdict:
            interval = f"{signed(standing.low, 3)} to {signed(standing.high, 3)}"
            p_value = p_value_text(standing.p_value)
            change = (signed(standing.difference, 3), interval, p_value, standing.verdict)
        lines.append((*cells, *change))
        if standing.verdict in ("", "better"):
            bold.add(place)
    under = "" if comparison.attack == "none" else f", {comparison.attack}"
    title = (
        f"AUROC of {comparison.detector}, {comparison.group} OOD ({', '.join(comparison.sets)})"
        f"{under}; tests of: {ATTACKED[comparison.attacked]}"
    )
    columns = (
        "method", *(ATTACKED[attacked] for attacked in sides), f"minus {comparison.reference}",
        f"{100 * comparison.level:g} % interval", "p (Holm)", "verdict",
    )  # fmt: skip
    return PlainTable(title, columns, tuple(lines), frozenset(bold))
