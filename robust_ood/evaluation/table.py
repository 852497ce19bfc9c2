"""The terminal table: what survived, at a glance."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from robust_ood.evaluation.results import Results, Row

_ATTACKED = ("none", "in", "out", "both")
_TITLES = {"none": "clean", "in": "inliers", "out": "outliers", "both": "both"}


def print_results(results: Results, console: Console | None = None) -> None:
    """Print AUROC and FPR95, clean and attacked, for each model, detector, attack and OOD set, then the accuracies."""
    console = console or Console()
    console.print(_detection(results.rows))
    console.print(_accuracy(results))
    for warning in results.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}")


def _detection(rows: Sequence[Row]) -> Table:
    table = Table(title="AUROC / FPR95: share of OOD accepted when 95 % of ID is accepted", title_justify="left")
    for name in ("model", "detector", "OOD", "attack"):
        table.add_column(name)
    for attacked in _ATTACKED:
        table.add_column(_TITLES[attacked], justify="right")
    clean = {(r.model, r.detector, r.ood, r.group): r for r in rows if r.attacked == "none"}
    lines: dict[tuple[str, str, str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row.attacked != "none":
            lines.setdefault((row.model, row.detector, row.ood, row.group, row.attack), {})[row.attacked] = row
    if not lines:
        lines = {(*key, "none"): {} for key in clean}
    previous = None
    for (model, detector, ood, group, attack), cells in lines.items():
        cells = {"none": clean[model, detector, ood, group], **cells}
        if previous not in (None, (model, detector)):
            table.add_section()
        previous = (model, detector)
        name = f"{group} (mean)" if ood == group else f"{ood} ({group})"
        table.add_row(model, detector, name, attack, *(_cell(cells.get(attacked)) for attacked in _ATTACKED))
    return table


def _cell(row: Row | None) -> str:
    return f"{row.auroc:.3f} / {row.fpr95:.3f}" if row else ""


def _accuracy(results: Results) -> Table:
    table = Table(title="classification accuracy", title_justify="left")
    for name in ("model", "attack", "accuracy"):
        table.add_column(name, justify="right" if name == "accuracy" else "left")
    for row in results.classification:
        table.add_row(row.model, row.attack, f"{row.accuracy:.3f}")
    return table
