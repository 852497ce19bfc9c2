"""How figures look: one drawing as SVG in the page's colours, light, dark or print, and as PNG."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from robust_ood.names import digest_of, spreadsheet_cell
from robust_ood.texts import shortened

# The colours of the PNG files; in the SVG, variables of the page's style sheet replace them.
INK = "#1f2430"
MUTED = "#5f6776"
RULE = "#e3e6ea"
INLIERS = "#0068a8"
NEAR = "#b8790b"
FAR = "#c8501a"
LINES = ("#0067a9", "#c84f19", "#0a8a63", "#a8559a", "#b8780a", "#3a9fd8", "#6b6f7a", "#7a5c1e")
SIDES = {"in": INLIERS, "id": INLIERS, "shifted": LINES[5], "near": NEAR, "far": FAR}
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    INLIERS: "inliers",
    NEAR: "near",
    FAR: "far",
    **{colour: f"line-{index}" for index, colour in enumerate(LINES)},
}
DASHES: Sequence[Any] = ("-", (0, (4, 2)), (0, (1, 1.5)))
MARKERS = "osD^vPX*"
DIVERGING = LinearSegmentedColormap.from_list(
    "change", ["#a6430f", "#e9a26b", "#f6f6f6", "#74b3dc", "#00528a"]
)

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "savefig.dpi": 160,
    "path.simplify": False,
}

# So that the same figure gives the same bytes.
_UNDATED: Mapping[str, Any] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}

_LONGEST_NAME = 100  # letters of a figure's name; its files have a suffix, too
_LEGEND_LINE = 0.3  # inches of a legend of one line
_LONGEST_LINE = 120  # letters of a line in a drawing; more leave no room for the data


class Words(NamedTuple):
    """The text around a figure. alt: what it shows, for readers who cannot see it."""

    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    name: of its files. title, caption, alt: as in `Words`. svg: an element to put into HTML. png:
    the same picture. columns, rows: its data. drawing: what it was made from.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    drawing: Drawing | None = field(default=None, repr=False, compare=False)

    def file(self, kind: str) -> bytes:
        """Return the picture as a file of its own.

        Args:
            kind: png; svg, with letters as outlines, which look alike everywhere; or pdf, with
                TrueType fonts, as publishers ask for.
        """
        if kind == "png" or self.drawing is None:
            return self.png
        content = io.BytesIO()
        fonts: Any = {"svg.fonttype": "path", "pdf.fonttype": 42, "svg.hashsalt": self.name}
        with style(), matplotlib.rc_context(fonts), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.drawing.savefig(content, format=kind, metadata=_UNDATED[kind])
        return content.getvalue()

    def csv(self) -> str:
        """Return the figure's data as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        for row in self.rows:
            writer.writerow(map(spreadsheet_cell, row))
        return text.getvalue()


def panels(
    rows: int, columns: int, *, width: float = 7.2, height: float = 2.3, **shared: Any
) -> tuple[Drawing, NDArray[Any]]:
    """Return a drawing and its axes `(rows, columns)`; `height` is that of a row, in inches."""
    drawing = Drawing(figsize=(width, height * rows), layout="constrained")
    axes = drawing.subplots(rows, columns, squeeze=False, **shared)
    return drawing, np.asarray(axes)


def style() -> AbstractContextManager[None]:
    """Return the context in which all drawing and saving happens."""
    return matplotlib.rc_context(_STYLE)


def gridlines(axes: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Draw hairlines behind the data."""
    axes.grid(visible=True, axis=axis)
    axes.tick_params(length=0, axis=axis)


def legend(drawing: Drawing, axes: Axes, columns: int = 4) -> None:
    """Put one legend below all panels, in so many columns or in fewer where names are long.

    The drawing grows by what the lines after the first need, so that panels keep their height.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    with warnings.catch_warnings():
        # Letters that the font lacks are measured as boxes.
        warnings.simplefilter("ignore", UserWarning)
        for count in range(min(columns, len(labels)), 0, -1):
            box = drawing.legend(handles, labels, loc="outside lower center", ncols=count)
            size = box.get_window_extent()
            if count == 1 or size.width <= drawing.bbox.width:
                break
            box.remove()
    height = size.height / drawing.dpi  # inches
    drawing.set_figheight(drawing.get_figheight() + max(height - _LEGEND_LINE, 0))


class _PlainPowers(LogFormatter):
    """Labels as matplotlib chooses them, such as 0.01, and none where they would be too many."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a place; "" for none."""
        chosen = super().__call__(x, pos)
        return f"{x:g}" if chosen else ""


def _write_powers_plainly(drawing: Drawing) -> None:
    """Label logarithmic axes with plain numbers: texts are never read as formulas."""
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter(_PlainPowers())
                axis.set_minor_formatter(_PlainPowers(labelOnlyBase=False))


def finish(
    drawing: Drawing,
    name: str,
    words: Words,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> Figure:
    """Save a drawing and return the figure."""
    _write_powers_plainly(drawing)
    for text in drawing.findobj(Text):
        assert isinstance(text, Text)
        if len(text.get_text()) > _LONGEST_LINE:
            lines = text.get_text().split("\n")
            text.set_text("\n".join(shortened(line, _LONGEST_LINE) for line in lines))
    svg = io.StringIO()
    png = io.BytesIO()
    # Identifiers and metadata are fixed, so that the same drawing gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # Names in other scripts or of many letters cost looks; the page has them as text.
        warnings.simplefilter("ignore", UserWarning)
        metadata = {"Date": None, "Creator": None}
        drawing.savefig(svg, format="svg", transparent=True, metadata=metadata)
        drawing.savefig(png, format="png", facecolor="white", metadata={"Software": None})
    title, caption, alt = words
    element = _for_page(svg.getvalue(), name, alt)
    return Figure(name, title, caption, alt, element, png.getvalue(), columns, rows, drawing)


def _for_page(svg: str, name: str, alt: str) -> str:
    """Return the `<svg>` element with the page's colours and font, and with unique identifiers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    tag, _, content = svg.partition(">")
    tag = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", tag)
    svg = _with_unique_ids(f"{tag}>{content}", name)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    svg = re.sub(r"#[0-9a-f]{6}", lambda match: _variable(match[0]), svg)
    width = 1.54 * float(svg.partition('viewBox="')[2].split()[2])  # all figures at one scale
    attributes = f'role="img" style="--width:{width:.0f}px" aria-label="{escape(alt)}"'
    return svg.replace("<svg", f"<svg {attributes}", 1).strip()


def _with_unique_ids(svg: str, name: str) -> str:
    """Return the drawing with its name in the identifiers it uses, and without unused ones."""
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))

    def renamed(match: re.Match[str]) -> str:
        identifier = match[1]
        if identifier not in used:
            return ""
        return f' id="{name}-{identifier}"'

    svg = re.sub(r'\s*\bid="([^"]+)"', renamed, svg)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)


def _variable(colour: str) -> str:
    if colour not in _VARIABLES:
        return colour
    return f"var(--{_VARIABLES[colour]})"


def slug(*words: str) -> str:
    """Return words as part of a file name; many of them are cut, and end in a digest."""
    text = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    if len(text) > _LONGEST_NAME:
        return f"{text[:_LONGEST_NAME].strip('-')}-{digest_of(' '.join(words))}"
    return text


def figure_names(kind: str, subjects: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Return a name for the figure of each subject; those of subjects that look alike differ.

    Args:
        kind: what the figures show, the beginning of their names.
        subjects: what each of them is of, such as a network and a detector.
    """
    names: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for subject in subjects:
        name = slug(kind, *subject)
        if name in taken:
            # The words' ends are kept apart: ("a-b", "c") is not ("a", "b-c").
            name = f"{name}-{digest_of(repr(subject))}"
        names[subject] = name
        taken.add(name)
    return names


def look(index: int) -> Mapping[str, Any]:
    """Return colour, dash and marker of the line with that number; the first 24 all differ."""
    dash = index // len(LINES) % len(DASHES)
    return {
        "color": LINES[index % len(LINES)],
        "linestyle": DASHES[dash],
        "marker": MARKERS[index % len(MARKERS)],
    }
