"""Tables as text: for a terminal, Markdown, LaTeX and spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from robust_ood.names import spreadsheet_cell


@dataclass(frozen=True)
class PlainTable:
    """A table of texts.

    Args:
        title: its caption.
        columns: their titles; the first column names the line.
        lines: as many texts as columns each.
        bold: the lines that are in bold, by their positions.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    bold: frozenset[int] = frozenset()


def as_text(table: PlainTable) -> str:
    """Return a table in aligned columns; lines in bold are marked by an asterisk."""
    rows = [table.columns, *table.lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    text = [table.title]
    for number, row in enumerate(rows):
        mark = "* " if number - 1 in table.bold else "  "
        cells = [row[0].ljust(widths[0])]
        for cell, width in zip(row[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        text.append((mark + "  ".join(cells)).rstrip())
    return "\n".join(text) + "\n"


def as_markdown(table: PlainTable) -> str:
    """Return a table as GitHub writes them."""
    text = [f"**{_markdown(table.title)}**", "", _bars(map(_markdown, table.columns))]
    text.append(_bars(["---", *["---:"] * (len(table.columns) - 1)]))
    for number, line in enumerate(table.lines):
        cells = list(map(_markdown, line))
        if number in table.bold:
            cells = [f"**{cell}**" if cell else cell for cell in cells]
        text.append(_bars(cells))
    return "\n".join(text) + "\n"


def as_latex(table: PlainTable) -> str:
    """Return a `table` environment with the rules of the package booktabs."""
    text = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        _ampersands(map(_latex, table.columns)),
        r"\midrule",
    ]
    for number, line in enumerate(table.lines):
        cells = list(map(_latex, line))
        if number in table.bold:
            cells = [rf"\textbf{{{cell}}}" if cell else cell for cell in cells]
        text.append(_ampersands(cells))
    text += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(text) + "\n"


def as_csv(table: PlainTable) -> str:
    """Return a table with the column `best` for lines in bold; formulas are quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", *table.columns, "best"])
    for number, line in enumerate(table.lines):
        cells = [spreadsheet_cell(cell) for cell in (table.title, *line)]
        writer.writerow([*cells, str(number in table.bold).lower()])
    return text.getvalue()


FORMATS: dict[str, Callable[[PlainTable], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
}
"""By the name that users choose."""

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _markdown(text: str) -> str:
    for letter in "\\`*_{}[]<>|#~":
        text = text.replace(letter, f"\\{letter}")
    return text


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"
