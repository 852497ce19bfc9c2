"""How figures look: one drawing for light, dark and print, as SVG whose colours are the page's, and
as PNG.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

# Each is a colour of the PNG files and, by its value, stands for a variable of the page's style
# sheet.
INK, MUTED, RULE = "#1f2430", "#5f6776", "#e3e6ea"
INLIERS, NEAR, FAR = "#0068a8", "#b8790b", "#c8501a"
LINES = ("#0067a9", "#c84f19", "#0a8a63", "#a8559a", "#b8780a", "#3a9fd8", "#6b6f7a", "#7a5c1e")
SIDES = {"in": INLIERS, "id": INLIERS, "near": NEAR, "far": FAR}
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


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    name: of its files. title, caption: words around it. alt: what it shows, for who cannot see it.
    svg: an element to put into HTML. png: the same picture. columns, rows: its data.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def csv(self) -> str:
        """Return the figure's data as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()


def panels(
    rows: int, columns: int, *, width: float = 7.2, height: float = 2.3, **shared: Any
) -> tuple[Drawing, NDArray[Any]]:
    """Return an empty drawing and its axes `(rows, columns)`; height is that of a row, in
    inches.
    """
    drawing = Drawing(figsize=(width, height * rows), layout="constrained")
    return drawing, np.asarray(drawing.subplots(rows, columns, squeeze=False, **shared))


def style() -> AbstractContextManager[None]:
    """Return the context in which all drawing and saving happens."""
    return matplotlib.rc_context(_STYLE)


def gridlines(axes: Axes, axis: Literal["x", "y"] = "y") -> None:
    """Draw hairlines behind the data."""
    axes.grid(visible=True, axis=axis)
    axes.tick_params(length=0, axis=axis)


def legend(drawing: Drawing, axes: Axes, columns: int = 4) -> None:
    """Put one legend below all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        drawing.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def finish(
    drawing: Drawing,
    name: str,
    *,
    title: str,
    caption: str,
    alt: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> Figure:
    """Save a drawing and return the figure."""
    svg, png = io.StringIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawing.savefig(
            svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    drawing.savefig(png, format="png", facecolor="white", metadata={"Software": None})
    return Figure(
        name,
        title,
        caption,
        alt,
        _for_page(svg.getvalue(), name, alt),
        png.getvalue(),
        columns,
        rows,
    )


def _for_page(svg: str, name: str, alt: str) -> str:
    """Return the `<svg>` element with the page's colours and font, and with identifiers of its
    own.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = (
        re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg.partition(">")[0])
        + ">"
        + svg.partition(">")[2]
    )
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(
        r'\s*\bid="([^"]+)"',
        lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "",
        svg,
    )
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", svg)
    svg = re.sub(r"#[0-9a-f]{6}", lambda found: _variable(found[0]), svg)
    wide = float(svg.partition('viewBox="')[2].split()[2])  # in points; all figures at one scale
    return svg.replace(
        "<svg", f'<svg role="img" style="--width:{1.54 * wide:.0f}px" aria-label="{escape(alt)}"', 1
    ).strip()


def _variable(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour


def slug(*words: str) -> str:
    """Return words as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def look(index: int) -> Mapping[str, Any]:
    """Return colour, dash and marker of the line with that number; no two of the first 24 are
    alike.
    """
    return {
        "color": LINES[index % len(LINES)],
        "linestyle": DASHES[index // len(LINES) % len(DASHES)],
        "marker": MARKERS[index % len(MARKERS)],
    }
