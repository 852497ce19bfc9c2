"""Every table of a report as a file: for a paper, a wiki or a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

from robust_ood.names import spreadsheet_cell
from robust_ood.reporting import tables
from robust_ood.reporting.figures.canvas import figure_names
from robust_ood.reporting.formats import FORMATS, PlainTable
from robust_ood.reporting.papers.comparison import comparisons
from robust_ood.reporting.recipes import headline, single_checkpoints
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.shifted import shifted_accuracies
from robust_ood.reporting.tables import Table, TableCell

ENDINGS = {"latex": "tex", "markdown": "md", "csv": "csv"}
"""By format, how the names of its files end."""


def table_files(data: ReportData, kind: str) -> dict[str, str]:
    """Return the text of each table of a report by the name of its file.

    Args:
        data: the results.
        kind: a key of `ENDINGS`.
    """
    texts = {}
    for name, table in report_tables(data).items():
        # CSV keeps the numbers as they are; the others show texts.
        if kind == "csv":
            text = as_csv(table)
        else:
            text = FORMATS[kind](replace(plain_table(table), label=name.removeprefix("table-")))
        texts[f"{name}.{ENDINGS[kind]}"] = text
    return texts


def report_tables(data: ReportData) -> dict[str, Table]:
    """Return the tables of a report that have lines, by names for files."""
    first = headline(data)
    named: list[tuple[str, Table | None]] = [
        ("survival", tables.survival(first)),
        ("accuracy", tables.accuracies(first)),
        ("accuracy on shifted inliers", shifted_accuracies(data)),
        ("recipes", tables.recipes(data)),
        ("metrics", tables.metrics(data)),
        ("suite members", tables.winners(data)),
        ("loss of auroc", tables.losses(data)),
    ]
    named += [("attack", table) for table in tables.by_attack(first)]
    named += [("published", comparison.table) for comparison in comparisons(first)]
    named += [("single checkpoints", table) for table in single_tables(data)]
    filled = [(kind, table) for kind, table in named if table is not None and table.rows]
    subjects = []
    for kind, table in filled:
        several = kind in ("attack", "published", "single checkpoints")
        subjects.append((kind, table.caption) if several else (kind,))
    names = figure_names("table", subjects)
    return {names[subject]: table for subject, (_, table) in zip(subjects, filled, strict=True)}


def single_tables(data: ReportData) -> list[Table]:
    """Return the tables of the checkpoints whose means the other tables show."""
    single = single_checkpoints(data)
    if single is None:
        return []
    of_single = [tables.survival(single), tables.accuracies(single), *tables.by_attack(single)]
    marked = []
    for table in of_single:
        caption = f"Single checkpoints. {table.caption}"
        marked.append(replace(table, caption=caption))
    return marked


def plain_table(table: Table) -> PlainTable:
    """Return a table as texts, with its first line only of each cell; an attack stays, in brackets.

    Intervals would make it too wide for a page; CSV has them.
    """
    lines = []
    for row in table.rows:
        lines.append(tuple(map(_text, row)))
    columns = tuple(title for title, _ in table.columns)
    names = 0
    if table.rows:
        names = sum(cell.name for cell in table.rows[0])
    return PlainTable(
        table.caption, columns, tuple(lines), heads=tuple(table.heads), legend=table.legend,
        names=max(1, names),
    )  # fmt: skip


def _text(cell: TableCell) -> str:
    notes = [note for note in cell.note.splitlines() if note and not _is_interval(note)]
    return f"{cell.text} ({', '.join(notes)})" if notes else cell.text


def _is_interval(note: str) -> bool:
    return note.replace("\N{EN DASH}", "").replace(".", "").isdigit()


def as_csv(table: Table) -> str:
    """Return a table as CSV with unrounded numbers; further lines of cells are columns."""
    titles = table.full_titles()
    noted = [any(row[index].note for row in table.rows) for index in range(len(titles))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header: list[str] = []
    for title, has_notes in zip(titles, noted, strict=True):
        header += [title, f"{title}: note"] if has_notes else [title]
    writer.writerow(map(spreadsheet_cell, header))
    for row in table.rows:
        writer.writerow(map(spreadsheet_cell, _cells(row, noted)))
    return text.getvalue()


def _cells(row: Sequence[TableCell], noted: Sequence[bool]) -> list[object]:
    cells: list[object] = []
    for cell, has_notes in zip(row, noted, strict=True):
        cells.append(cell.text if cell.value is None else cell.value)
        if has_notes:
            cells.append("; ".join(cell.note.splitlines()))
    return cells
