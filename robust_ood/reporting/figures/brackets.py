"""Brackets: bars from what is certified to what an attack leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from robust_ood.reporting.figures.canvas import (
    LINES,
    MUTED,
    Figure,
    Words,
    finish,
    gridlines,
    legend,
    panels,
    style,
)

_LEAST = 0.004  # of AUROC: a settled bracket is still to be seen


class Bracket(NamedTuple):
    """What is known of one AUROC: it is at least `lower`, and an attack leaves `attacked`."""

    label: str
    clean: float | None
    attacked: float
    lower: float
    kind: str


def draw_brackets(brackets: Sequence[Bracket], subject: str, name: str, words: Words) -> Figure:
    """Return a bar for each bracket, from the certified AUROC to the attacked one.

    Args:
        brackets: from top to bottom, at least one.
        subject: network and group, the title of the panel.
        name: of the figure's files.
        words: the text around it.
    """
    with style():
        drawing, axes = panels(1, 1, height=1.1 + 0.24 * len(brackets))
        panel = axes[0, 0]
        gridlines(panel, "x")
        panel.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
        _bars(panel, brackets)
        panel.set_yticks(range(len(brackets)), [bracket.label for bracket in brackets])
        panel.set_ylim(len(brackets) - 0.5, -0.5)
        panel.set_xlim(-0.02, 1.02)
        panel.set_xlabel("AUROC")
        panel.set_title(subject, loc="left")
        legend(drawing, panel)
        rows = [list(bracket) for bracket in brackets]
        return finish(drawing, name, words, list(Bracket._fields), rows)


def _bars(panel: Axes, brackets: Sequence[Bracket]) -> None:
    for kind, colour in zip(("certified", "guaranteed"), LINES, strict=False):
        places = []
        lowers = []
        widths = []
        for place, bracket in enumerate(brackets):
            if bracket.kind == kind:
                places.append(place)
                lowers.append(bracket.lower)
                widths.append(max(_LEAST, bracket.attacked - bracket.lower))
        if places:
            label = f"{kind} to attacked"
            panel.barh(places, widths, left=lowers, height=0.55, color=colour, label=label)
    places = []
    cleans = []
    for place, bracket in enumerate(brackets):
        if bracket.clean is not None:
            places.append(place)
            cleans.append(bracket.clean)
    panel.plot(cleans, places, linestyle="none", marker="|", color=MUTED, label="clean")
