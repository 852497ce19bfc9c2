"""The terminal tables: what survived, at a glance, in 80 columns."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from robust_ood.evaluation.records import Failure, Row
from robust_ood.evaluation.results import Results

_ATTACKED = {"none": "clean", "in": "inliers", "out": "outliers", "both": "both"}


def print_results(results: Results, console: Console | None = None) -> None:
    """Print AUROC and FPR95, clean and attacked, for each attack, model, detector and OOD set, then
    the accuracies.
    """
    console = console or Console()
    attacked = [row for row in results.rows if row.attacked != "none"]
    clean = {_subject(row): row for row in results.rows if row.attacked == "none"}
    if not attacked:
        console.print(
            _detection("no attack", {subject: {"none": row} for subject, row in clean.items()}), ""
        )
    for attack in dict.fromkeys(row.attack for row in attacked):  # in the order of the config
        rows = [row for row in attacked if row.attack == attack]
        cells: dict[tuple[str, ...], dict[str, Row | None]] = {}
        for row in rows:
            cells.setdefault(_subject(row), {"none": clean.get(_subject(row))})[row.attacked] = row
        first = rows[0]
        budget = f"{_count(first.steps, 'step')}, {_count(first.restarts, 'restart')}"
        title = f"attack {attack}: {first.norm} {first.radius:.4f}, {budget}"
        console.print(_detection(title, cells), "")
    console.print(
        "AUROC/FPR95 with clean images, attacked inliers, attacked outliers, and both attacked.\n"
        "FPR95 is the share of OOD accepted when 95 % of ID is accepted.",
        highlight=False,
    )
    console.print()
    console.print(_accuracy(results))
    if results.summary:
        console.print(_summary(results), "")
    for warning in results.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}")
    for failure in results.failures:
        console.print(f"[red]failed:[/red] {escape(describe_failure(failure))}")


def describe_failure(failure: Failure) -> str:
    """Return who failed, in what, and why, in one line."""
    subject = f"{failure.model}, {failure.detector}" if failure.detector else failure.model
    under = "" if failure.attack == "none" else f" under {failure.attack}"
    return f"{subject} ({failure.stage}{under}): {failure.error}"


def _subject(row: Row) -> tuple[str, ...]:
    return (row.model, row.detector, row.ood, row.group)


def _table(title: str) -> Table:
    """Return an empty table that leaves the width of the terminal to its cells, but for its
    title's.
    """
    tight = {"box": SIMPLE_HEAD, "pad_edge": False, "show_edge": False, "padding": (0, 1, 0, 0)}
    width = min(len(title), 60)
    return Table(title=title, min_width=width, title_justify="left", title_style="bold", **tight)  # type: ignore[arg-type]


def _detection(title: str, lines: Mapping[tuple[str, ...], Mapping[str, Row | None]]) -> Table:
    table = _table(title)
    for name in ("model", "detector", "OOD set"):
        table.add_column(name, overflow="fold")
    for name in _ATTACKED.values():
        table.add_column(name, justify="right", no_wrap=True)
    previous: tuple[str, ...] = ("", "")
    sets = {(model, detector, group): 0 for model, detector, _, group in lines}
    for model, detector, ood, group in lines:
        sets[model, detector, group] += ood != group
    for (model, detector, ood, group), cells in lines.items():
        if ood == group and sets[model, detector, group] == 1:
            continue  # the mean of a single set
        if previous[0] not in ("", model):
            table.add_section()
        shown = (
            model if model != previous[0] else "",
            detector if (model, detector) != previous else "",
        )
        alone = not sets[model, detector, group]  # a single set, called like its group
        name = f"mean of {group}" if ood == group and not alone else ood
        table.add_row(*shown, name, *(_cell(cells.get(attacked)) for attacked in _ATTACKED))
        previous = (model, detector)
    return table


def _summary(results: Results) -> Table:
    table = _table(
        "mean +- standard deviation over the checkpoints of a recipe: AUROC (accuracy where no detector is)"
    )
    for name in ("recipe", "detector", "attack", "attacked", "OOD set"):
        table.add_column(name, overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    for one in results.summary:
        metric = "auroc" if one.detector else "accuracy"
        names = (
            one.recipe,
            one.detector or "",
            one.attack,
            _ATTACKED.get(one.attacked or "", ""),
            one.ood or "",
        )
        table.add_row(*names, f"{_rate(one.mean[metric])} +- {_rate(one.std[metric])}")
    return table


def _cell(row: Row | None) -> str:
    return f"{_rate(row.auroc)}/{_rate(row.fpr95)}" if row else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _rate(value: float) -> str:
    """Return three decimals without the leading zero: `.987`, and `1.00` for one."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0") else text[:4]


def _accuracy(results: Results) -> Table:
    table = _table("classification accuracy")
    attacks = list(dict.fromkeys(row.attack for row in results.classification))
    table.add_column("model")
    for attack in attacks:
        table.add_column("clean" if attack == "none" else attack, justify="right")
    for model in dict.fromkeys(row.model for row in results.classification):
        cells = {
            row.attack: _rate(row.accuracy) for row in results.classification if row.model == model
        }
        table.add_row(model, *(cells.get(attack, "") for attack in attacks))
    return table
