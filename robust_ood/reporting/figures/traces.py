"""The score of each image as its perturbation grows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from robust_ood.evaluation.curves import ScoreTrace
from robust_ood.reporting.figures.canvas import (
    INK,
    SIDES,
    Figure,
    Words,
    finish,
    gridlines,
    panels,
    style,
)

Traces = Mapping[tuple[str, str], ScoreTrace]
"""By network and side ("in", "near" or "far"), its trace, `(steps + 1, N)` each."""

_NORMS: tuple[Literal["Linf", "L2"], ...] = ("Linf", "L2")
_MOST_LINES = 128
_SIDE_NAMES = {"in": "inliers", "near": "near OOD", "far": "far OOD"}


def score_by_size(traces: Traces, detector: str, name: str) -> Figure:
    """Return the score of each image against the size of its perturbation, in both norms.

    Source: Fort 2022, Fig. 3, 5, 6 and 8: a thin line for each image, a thick one for the median
    of each step.

    Args:
        traces: each network and side gets a row of panels.
        detector: whose scores they are, for the text.
        name: of the figure's files.
    """
    moves = []
    for (model, side), run in traces.items():
        medians = run.scores.median(dim=1).values
        change = float(medians[-1] - medians[0])
        moves.append(f"of {_SIDE_NAMES[side]} on {model} by {change:+.3g}")
    words = Words(
        title=f"Scores of {detector} against perturbation norm",
        caption="The true score of each image (a thin line; at most "
        f"{_MOST_LINES}) as it moves away from the clean image in equal gradient steps, and the "
        "median of each step (thick). Outliers move up, towards the inliers, and inliers down "
        "(Fort 2022, Fig. 3).",
        alt="Lines of scores against the norm of the perturbation. From the first step to the last "
        f"the median score moves: {'; '.join(moves)}.",
    )
    with style():
        drawing, axes = panels(len(traces), len(_NORMS), height=2.2, sharey="row")
        for row, ((model, side), run) in enumerate(traces.items()):
            for column, norm in enumerate(_NORMS):
                _panel(axes[row, column], run, norm, side)
            axes[row, 0].set_ylabel("score")
            axes[row, 0].set_title(f"{model}, {_SIDE_NAMES[side]}", loc="left")
        columns = ["model", "side", "detector", "image", "step", "linf", "l2", "score"]
        return finish(drawing, name, words, columns, _rows(traces, detector))


def _panel(axes: Axes, run: ScoreTrace, norm: Literal["Linf", "L2"], side: str) -> None:
    scale = 255 if norm == "Linf" else 1
    sizes = run.sizes(norm).numpy() * scale  # (steps + 1, N)
    scores = run.scores.numpy()
    gridlines(axes)
    axes.plot(
        sizes[:, :_MOST_LINES],
        scores[:, :_MOST_LINES],
        color=SIDES[side],
        linewidth=0.6,
        alpha=0.35,
    )
    middle = np.median(scores, axis=1)
    axes.plot(np.median(sizes, axis=1), middle, color=INK, linewidth=1.8)
    axes.set_xlabel("Linf, 255ths" if norm == "Linf" else norm)


def _rows(traces: Traces, detector: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for (model, side), run in traces.items():
        steps, images = run.scores.shape
        for image in range(images):
            for step in range(steps):
                values = [float(each[step, image]) for each in (run.linf, run.l2, run.scores)]
                rows.append([model, side, detector, image, step, *values])
    return rows
