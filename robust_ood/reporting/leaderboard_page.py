"""The leaderboard as a page, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from robust_ood.reporting.formats import PlainTable, as_markdown, markdown_text
from robust_ood.reporting.leaderboard import SIDES, Standing, as_json
from robust_ood.reporting.numbers import percent, rate
from robust_ood.reporting.page import resource
from robust_ood.reporting.summary import CHANCE
from robust_ood.reporting.tables import Table, TableCell
from robust_ood.texts import radius_text
from robust_ood.writing import replace_file

TITLE = "Leaderboard of robust OOD detection"
LEGEND = (
    "AUROC with both sides attacked, with inliers or outliers alone, and clean: higher is better, "
    "0.5 is chance. Best first, by the lower of near and far with both sides attacked. What an "
    "attack reached is an upper bound; certified is a lower one."
)
RULES = (
    "Radii are in pixels of [0, 1]; both sides means that inliers and outliers are attacked.",
    "Each detector is attacked through its own score, as it is used.",
    "A row stands until a stronger attack replaces it: a lower AUROC on as many images, or on "
    "fewer with the whole interval below.",
    "Every row is of a sealed folder: the sums of its files were checked, and each AUROC was "
    "computed again from the stored scores.",
)
_TITLES = {"both": "both sides", "in": "inliers", "out": "outliers", "none": "clean"}
_GROUPS = {"far": "Far", "near": "Near"}
_COMMON = ("Sanity", "Attack, steps x restarts", "Images", "Minutes")
"""Columns that Markdown says once, below a table, where all of its rows agree."""
_NAMES = 2


@dataclass(frozen=True)
class Line:
    """What is known of a network and a detector under a norm and radius, by the attacked side."""

    sides: Mapping[str, Standing]

    @property
    def strongest(self) -> Standing:
        """The row of the side that counts most, of those that there are."""
        return next(self.sides[side] for side in SIDES if side in self.sides)

    def auroc(self, group: str, side: str) -> TableCell:
        """Return the AUROC of near or far sets with a side attacked; of both, its interval, too."""
        standing = self.sides.get(side)
        if standing is None:
            # Clean scores belong to each attacked row.
            return _rate(getattr(self.strongest, f"clean_{group}") if side == "none" else None)
        interval = getattr(standing, f"{group}_interval") if side == "both" else None
        return _rate(getattr(standing, group), interval)

    def accuracy(self, *, attacked: bool) -> TableCell:
        """Return the accuracy of the classifier, clean or under the same norm and radius."""
        for side in ("both", "in") if attacked else ("out", "none"):
            if side in self.sides:
                return _number(self.sides[side].accuracy, percent)
        return TableCell("")

    def attacks(self) -> str:
        """Return the attacks that were run."""
        names = []
        for side in SIDES:
            if side in self.sides and side != "none":
                names.append(self.sides[side].attack)
        return "; ".join(dict.fromkeys(names)) or "none"


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
    """Return the page: a table for each norm and radius, sortable and filterable, in one file."""
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
        legend=LEGEND,
        tables=tables(rows),
        rules=RULES,
    )


def markdown(rows: Sequence[Standing]) -> str:
    """Return the tables as GitHub writes them; what all rows of a table share is said below it."""
    parts = [f"# {TITLE}\n", f"{_facts(rows)}. {LEGEND}\n"]
    for table in tables(rows):
        shared = {}
        for column, title in enumerate(table.full_titles()):
            texts = {row[column].text for row in table.rows}
            if title in _COMMON and len(texts) == 1:
                shared[title] = texts.pop()
        kept = []
        for column, title in enumerate(table.full_titles()):
            if title not in shared and title != "Minutes":
                kept.append(column)
        parts.append(as_markdown(_plain(table, kept)))
        words = [f"{title}: {text}" for title, text in shared.items()]
        parts.append(markdown_text(". ".join([table.legend, *words])) + ".\n")
    parts.append("\n".join(f"- {rule}" for rule in RULES) + "\n")
    return "\n".join(parts)


def _plain(table: Table, columns: Sequence[int]) -> PlainTable:
    """Return some columns as text, with the intervals in brackets."""
    titles = table.full_titles()
    lines = []
    for row in table.rows:
        texts = []
        for column in columns:
            cell = row[column]
            texts.append(f"{cell.text} ({cell.note})" if cell.note else cell.text)
        lines.append(tuple(texts))
    chosen = tuple(titles[column] for column in columns)
    return PlainTable(table.caption, chosen, tuple(lines), names=_NAMES)


def tables(rows: Sequence[Standing]) -> list[Table]:
    """Return a table for each norm and radius on the same images, a network and detector a line.

    Clean rows have a table where their network and detector have no attacked ones.
    """
    lines: dict[tuple[object, ...], dict[tuple[str, str], dict[str, Standing]]] = {}
    attacked = set()
    for row in rows:
        pair = (row.images_of, row.weights, row.detector)
        if row.attacked != "none":
            attacked.add(pair)
        elif pair in attacked:  # its attacked rows, which come first, hold the clean scores, too
            continue
        threat = (row.images_of, row.norm, row.radius)
        subjects = lines.setdefault(threat, {})
        subjects.setdefault((row.weights, row.detector), {})[row.attacked] = row
    return [_table([Line(sides) for sides in subjects.values()]) for subjects in lines.values()]


def _table(lines: Sequence[Line]) -> Table:
    """Return the lines of a threat with the columns that any of them fills."""
    first = lines[0].strongest
    threat = "clean"
    if first.attacked != "none":
        threat = radius_text(first.norm, first.radius)
    columns = [("", "Network"), ("", "Detector")]
    cells = []
    for line in lines:
        names = (line.strongest.network, line.strongest.detector)
        cells.append([TableCell(name, name=True) for name in names])
    for head, title, values in _columns(lines):
        if any(cell.text for cell in values):
            columns.append((head, title))
            for row, cell in zip(cells, values, strict=True):
                row.append(cell)
    heads: list[tuple[str, int]] = []
    for head, _ in columns:
        span = heads.pop()[1] if heads and heads[-1][0] == head else 0
        heads.append((head, span + 1))
    titles = [(title, "") for _, title in columns]
    images = ", ".join(word for word in (first.id, first.form) if word)
    return Table(f"{images}: {threat}", titles, cells, heads, _sets_in_words(first))


def _columns(lines: Sequence[Line]) -> Iterator[tuple[str, str, list[TableCell]]]:
    """Yield the title above, the title and the cells of each column of numbers and facts."""
    for group, head in _GROUPS.items():
        for side, title in _TITLES.items():
            yield head, title, [line.auroc(group, side) for line in lines]
    for attacked, title in ((True, "attacked"), (False, "clean")):
        yield "Accuracy", title, [line.accuracy(attacked=attacked) for line in lines]
    strongest = [line.strongest for line in lines]
    yield "", "Certified far AUROC", [_number(row.certified, rate) for row in strongest]
    yield "", "Sanity", [TableCell(row.sanity) for row in strongest]
    yield "", "Attack, steps x restarts", [TableCell(line.attacks()) for line in lines]
    yield "", "Images", [TableCell(str(row.images), float(row.images)) for row in strongest]
    minutes = []
    for line in lines:
        spent = max(row.minutes for row in line.sides.values())
        minutes.append(TableCell(f"{spent:.1f}", spent))
    yield "", "Minutes", minutes


def _sets_in_words(row: Standing) -> str:
    """Return which OOD sets the groups are the means of."""
    words = []
    for group, title in _GROUPS.items():
        names = getattr(row, f"{group}_sets")
        if names:
            words.append(f"{title}: {', '.join(names)}")
    return "; ".join(words)


def _rate(value: float | None, interval: tuple[float, float] | None = None) -> TableCell:
    if value is None:
        return TableCell("")
    note = ""
    if interval is not None:
        note = f"{rate(interval[0])} to {rate(interval[1])}"
    return TableCell(rate(value), value, note=note, chance=value < CHANCE)


def _number(value: float | None, write_number: Callable[[float], str]) -> TableCell:
    if value is None:
        return TableCell("")
    return TableCell(write_number(value), value)


def _facts(rows: Sequence[Standing]) -> str:
    networks = {row.weights for row in rows}
    detectors = {row.detector for row in rows}
    return f"{len(networks)} networks, {len(detectors)} detectors, {len(rows)} rows"
