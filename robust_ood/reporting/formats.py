"""Tables as text: for a terminal, Markdown, LaTeX and spreadsheets."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
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
        heads: titles that span several columns, with how many they span.
        legend: what the numbers mean.
        names: how many columns, from the left, hold names; LaTeX aligns them on the left.
        label: what papers refer to it by, after `tab:`; made of the title where it is empty.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    bold: frozenset[int] = frozenset()
    heads: tuple[tuple[str, int], ...] = ()
    legend: str = ""
    names: int = 1
    label: str = ""

    def full_titles(self) -> list[str]:
        """Return each column's title with the title that spans it."""
        spanning: list[str] = []
        for head, span in self.heads or [("", len(self.columns))]:
            spanning += [head] * span
        titles = []
        for head, title in zip(spanning, self.columns, strict=True):
            titles.append(f"{head} {title}".strip())
        return titles


def as_text(table: PlainTable) -> str:
    """Return a table in aligned columns; lines in bold are marked by an asterisk."""
    rows: list[Sequence[str]] = [table.full_titles(), *table.lines]
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
    text = [f"**{markdown_text(table.title)}**", "", _bars(map(markdown_text, table.full_titles()))]
    text.append(_bars(["---", *["---:"] * (len(table.columns) - 1)]))
    for number, line in enumerate(table.lines):
        cells = list(map(markdown_text, line))
        if number in table.bold:
            cells = [f"**{cell}**" if cell else cell for cell in cells]
        text.append(_bars(cells))
    return "\n".join(text) + "\n"


def as_latex(table: PlainTable) -> str:
    """Return a `table` environment with the rules of the package booktabs.

    A table that is wider than the text is shrunk to it, by the package graphicx. Letters beyond
    Latin and Greek stay as they are, for which LuaLaTeX and XeLaTeX have fonts and pdfLaTeX has
    none.
    """
    text = [r"% \usepackage{booktabs}, \usepackage{graphicx}"]
    if table.legend:
        text.append(f"% {' '.join(table.legend.split())}")  # a second line would be no comment
    label = re.sub(r"[^a-z0-9]+", "-", (table.label or table.title).lower()).strip("-") or "table"
    text += [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}"]
    text += [rf"\label{{tab:{label}}}", _SHRUNK, *_tabular(table), "}", r"\end{table}"]
    return "\n".join(text) + "\n"


def _tabular(table: PlainTable) -> list[str]:
    """Return the lines of the environment `tabular`."""
    alignment = "l" * table.names + "r" * (len(table.columns) - table.names)
    text = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    if table.heads:
        text += _spanning(table.heads)
    text += [_ampersands(map(_latex, table.columns)), r"\midrule"]
    for number, line in enumerate(table.lines):
        cells = list(map(_latex, line))
        if number in table.bold:
            cells = [rf"\textbf{{{cell}}}" if cell else cell for cell in cells]
        text.append(_ampersands(cells))
    return [*text, r"\bottomrule", r"\end{tabular}"]


def _spanning(heads: Sequence[tuple[str, int]]) -> list[str]:
    """Return the line of titles that span columns, and the rules below them."""
    cells = []
    rules = []
    first = 1
    for title, span in heads:
        cells.append(rf"\multicolumn{{{span}}}{{c}}{{{_latex(title)}}}")
        if title:
            rules.append(rf"\cmidrule(lr){{{first}-{first + span - 1}}}")
        first += span
    # An empty line would be a paragraph of the first cell.
    return [_ampersands(cells), " ".join(rules)] if rules else [_ampersands(cells)]


def as_csv(table: PlainTable) -> str:
    """Return a table with the column `best` for lines in bold; formulas are quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", *table.full_titles(), "best"])
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

_SHRUNK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Begins what becomes as wide as the text where it is wider, and else stays as it is."""

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": "--", "\N{EM DASH}": "---", "|": r"\textbar{}",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$", "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``", "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "\N{NO-BREAK SPACE}": "~", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{LESS-THAN OR EQUAL TO}": r"$\le$", "\N{GREATER-THAN OR EQUAL TO}": r"$\ge$",
    "\N{INFINITY}": r"$\infty$", "\N{MIDDLE DOT}": r"$\cdot$",
    # In the first cell, `\\` and `\midrule` before it would take these as their own arguments.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau"
_GREEK += " upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
_UNICODE = {"lambda": "LAMDA"}  # as Unicode spells it


def _greek() -> dict[str, str]:
    """Return Greek letters by their symbols in formulas; the others look like Latin ones."""
    letters = {}
    for name in _GREEK.split():
        case = "SMALL" if name.islower() else "CAPITAL"
        spelt = _UNICODE.get(name.lower(), name.upper())
        letters[unicodedata.lookup(f"GREEK {case} LETTER {spelt}")] = rf"$\{name}$"
    return letters


_LATEX.update(_greek())


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def markdown_text(text: str) -> str:
    """Return a text in which nothing is Markdown."""
    for letter in "\\`*_{}[]<>|#~":
        text = text.replace(letter, f"\\{letter}")
    return text


def _bars(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ampersands(cells: Iterable[str]) -> str:
    return rf"{' & '.join(cells)} \\"
