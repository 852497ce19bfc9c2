"""The leaderboard as a page, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from robust_ood.reporting.formats import PlainTable, as_markdown
from robust_ood.reporting.leaderboard import Standing, as_json
from robust_ood.reporting.numbers import percent, rate
from robust_ood.reporting.page import resource
from robust_ood.reporting.summary import CHANCE
from robust_ood.reporting.tables import Table, TableCell
from robust_ood.writing import replace_file

TITLE = "Leaderboard of robust OOD detection"
LEGEND = (
    "AUROC: higher is better; small numbers are 95 % intervals, and the clean AUROC where images "
    "were attacked. What an attack reached is an upper bound; certified is a lower one."
)
RULES = (
    "Radii are in pixels of [0, 1]; both sides means that inliers and outliers are attacked.",
    "Each detector is attacked through its own score, as it is used.",
    "A row stands until a stronger attack replaces it: a lower AUROC on as many images, or on "
    "fewer with the whole interval below.",
    "Every row is of a sealed folder: the sums of its files were checked, and each AUROC was "
    "computed again from the stored scores.",
)
_COLUMNS = (
    ("Network", ""),
    ("Detector", ""),
    ("ID", ""),
    ("Near", "AUROC"),
    ("Far", "AUROC"),
    ("Accuracy", "same threat"),
    ("Certified", "far AUROC"),
    ("Sanity", ""),
    ("Attack", "steps x restarts"),
    ("Images", "fewest of a side"),
    ("Minutes", ""),
)
_NAMES = 3


def write(rows: Sequence[Standing], folder: Path) -> list[Path]:
    """Write `leaderboard.html`, `.md` and `.json` into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"html": page(rows), "md": markdown(rows), "json": as_json(rows)}
    paths = []
    for suffix, text in contents.items():
        path = folder / f"leaderboard.{suffix}"
        replace_file(path, text)
        paths.append(path)
    return paths


def page(rows: Sequence[Standing]) -> str:
    """Return the page: a table for each threat, sortable and filterable, in one file."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["whole"] = str
    text = resource("table.html.j2") + resource("leaderboard.html.j2")
    return environment.from_string(text).render(
        css=Markup(resource("page.css")),
        js=Markup(resource("page.js")),
        title=TITLE,
        facts=_facts(rows),
        tables=tables(rows),
        rules=RULES,
    )


def markdown(rows: Sequence[Standing]) -> str:
    """Return the tables as GitHub writes them."""
    parts = [f"# {TITLE}\n", f"{_facts(rows)}.\n"]
    for table in tables(rows):
        lines = []
        for row in table.rows:
            texts = []
            for cell in row:
                texts.append(" ".join([cell.text, *cell.note.splitlines()]))
            lines.append(tuple(texts))
        columns = []
        for title, words in table.columns:
            columns.append(f"{title}, {words}" if words else title)
        parts.append(as_markdown(PlainTable(table.caption, tuple(columns), tuple(lines))))
    parts.append(LEGEND + "\n")
    parts.append("\n".join(f"- {rule}" for rule in RULES) + "\n")
    return "\n".join(parts)


def tables(rows: Sequence[Standing]) -> list[Table]:
    """Return a table for each threat, in the order of the rows."""
    by_threat: dict[str, list[list[TableCell]]] = {}
    for row in rows:
        by_threat.setdefault(row.threat, []).append(_cells(row))
    made = []
    for threat, lines in by_threat.items():
        caption = "Clean" if threat == "none" else f"Attacked: {threat}"
        made.append(Table(caption, _COLUMNS, lines, legend=LEGEND))
    return made


def _cells(row: Standing) -> list[TableCell]:
    return [
        TableCell(row.network, name=True),
        TableCell(row.detector, name=True),
        TableCell(row.id, name=True),
        _auroc(row.near, row.near_interval, row.clean_near, row.attacked),
        _auroc(row.far, row.far_interval, row.clean_far, row.attacked),
        _number(row.accuracy, percent),
        _number(row.certified, rate),
        TableCell(row.sanity),
        TableCell(row.attack),
        TableCell(str(row.images), float(row.images)),
        TableCell(f"{row.minutes:.1f}", row.minutes),
    ]


def _auroc(
    value: float | None, interval: tuple[float, float] | None, clean: float | None, attacked: str
) -> TableCell:
    if value is None:
        return TableCell("")
    note = []
    if interval is not None:
        note.append(f"{rate(interval[0])} to {rate(interval[1])}")
    if attacked != "none" and clean is not None:
        note.append(f"clean {rate(clean)}")
    return TableCell(rate(value), value, note="\n".join(note), chance=value < CHANCE)


def _number(value: float | None, write_number: Callable[[float], str]) -> TableCell:
    if value is None:
        return TableCell("")
    return TableCell(write_number(value), value)


def _facts(rows: Sequence[Standing]) -> str:
    networks = {row.weights for row in rows}
    detectors = {row.detector for row in rows}
    return f"{len(networks)} networks, {len(detectors)} detectors, {len(rows)} rows"
