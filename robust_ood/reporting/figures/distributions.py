"""Distributions of scores, and of their shifts under a small perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch
from numpy.typing import NDArray

from robust_ood.reporting.figures.canvas import (
    MUTED,
    SIDES,
    Figure,
    Words,
    finish,
    gridlines,
    panels,
    style,
)

_BINS = 40
_OUTERMOST = 0.005  # the share of the values at either end that the bins leave out
_FILL = 0.28  # opacity of the inliers' bars
_NAMES = {
    "id": "in-distribution",
    "in": "in-distribution",
    "shifted": "shifted inliers",
    "near": "near OOD",
    "far": "far OOD",
}
_INLIERS = ("id", "in")

Values = Mapping[str, NDArray[np.float64]]
"""Values by side: "id" (or "in"), "shifted", "near", "far"."""


def score_histograms(
    scores: Mapping[str, tuple[Values, Values]],
    attacks: Mapping[str, str],
    thresholds: Mapping[str, float],
    detector: str,
    name: str,
) -> Figure:
    """Return histograms of scores, clean and attacked, with a row for each network.

    Source: ALOE paper, Fig. 2.

    Args:
        scores: by network, clean and attacked scores of each side.
        attacks: by network, the attack's label.
        thresholds: by network, from which score on an image is accepted.
        detector: its name.
        name: of the figure's files.
    """
    rows: list[list[object]] = []
    sentences = []
    sides: dict[str, None] = {}  # in order, each once
    with style():
        drawing, axes = panels(len(scores), 2, height=1.9, sharex="row", sharey="row")
        for line, (model, (clean, attacked)) in enumerate(scores.items()):
            threshold = thresholds[model]
            rows += _score_bars(axes[line], clean, attacked, [model, detector], attacks[model])
            for panel in axes[line]:
                panel.axvline(threshold, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)))
            sentences.append(f"{model}: {_accepted(clean, attacked, threshold)}")
            sides.update(dict.fromkeys(clean))
        _label(axes, f"{detector} score, higher = more in-distribution")
        _side_legend(drawing, list(sides))
        words = Words(
            title=f"Scores of {detector}",
            caption="Scores of all images, inliers against OOD sets pooled by group, clean and "
            "under the attack that costs this detector the most AUROC (ALOE paper, Fig. 2). Right "
            "of the dashed line is what a deployed detector accepts: 95 % of clean validation "
            "images, or of the test images where there are none. The outermost bars include "
            "all values beyond them.",
            alt=f"Histograms of {detector} scores. {' '.join(sentences)}",
        )
        columns = ["model", "detector", "attack", "side", "bin_low", "bin_high", "share"]
        return finish(drawing, name, words, columns, rows)


def _score_bars(
    axes: NDArray[Any], clean: Values, attacked: Values, subject: list[object], attack: str
) -> list[list[object]]:
    """Draw a network's scores, clean and attacked, over the same bins, and return the data."""
    edges = bin_edges([*clean.values(), *attacked.values()])
    rows = _bars(axes[0], clean, edges, [*subject, "clean"])
    rows += _bars(axes[1], attacked, edges, [*subject, attack])
    axes[0].set_title(f"{subject[0]}, clean", loc="left")
    axes[1].set_title(f"{subject[0]}, both sides attacked by {attack}", loc="left")
    return rows


def _accepted(clean: Values, attacked: Values, threshold: float) -> str:
    """Say what the threshold accepts, clean and attacked."""
    clauses = []
    for side in clean:
        before = float((clean[side] >= threshold).mean())
        after = float((attacked[side] >= threshold).mean())
        clauses.append(f"{_NAMES[side]} accepted {before:.0%} clean and {after:.0%} attacked")
    return ", ".join(clauses) + "."


def score_shifts(
    shifts: Mapping[str, tuple[NDArray[Any], Values]], detector: str, name: str
) -> Figure:
    """Return histograms of score shifts under one gradient step, with a row for each network.

    Source: PRO paper, Fig. 3 and 7.

    Args:
        shifts: by network, step sizes `(S,)` and shifts `(S, N)` by side.
        detector: its name.
        name: of the figure's files.
    """
    rows: list[list[object]] = []
    sentences = []
    first_sizes, first_sides = next(iter(shifts.values()))
    sizes = first_sizes.tolist()
    with style():
        drawing, axes = panels(len(shifts), len(sizes), height=1.9)
        for line, (model, (_, sides)) in enumerate(shifts.items()):
            for column, size in enumerate(sizes):
                panel = axes[line, column]
                values = {side: shifted[column] for side, shifted in sides.items()}  # (N,) each
                edges = bin_edges(list(values.values()))
                rows += _bars(panel, values, edges, [model, detector, size])
                panel.axvline(0, color=MUTED, linewidth=0.9)
                panel.set_title(f"{model}, step {size:g}", loc="left")
                sentences.append(f"{model}, step {size:g}: median shift {_medians(values)}.")
        _label(axes, f"change of the {detector} score")
        _side_legend(drawing, list(first_sides))
        words = Words(
            title=f"Score shifts of {detector} under one step",
            caption="Change of the score after one sign-gradient step that lowers it, for inliers "
            "and outliers alike; step sizes are fractions of the pixel range (PRO paper, Fig. 3 "
            "and 7). PRO separates well where OOD images shift further than inliers. The outermost "
            "bars include all values beyond them.",
            alt=f"Histograms of the change of {detector} scores. {' '.join(sentences)}",
        )
        columns = ["model", "detector", "step_size", "side", "bin_low", "bin_high", "share"]
        return finish(drawing, name, words, columns, rows)


def _medians(sides: Values) -> str:
    medians = []
    for side, values in sides.items():
        medians.append(f"{_NAMES[side]} {np.median(values):.3g}")
    return ", ".join(medians)


def bin_edges(columns: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return edges of equal bins over all but the outermost 0.5 % of the values at either end."""
    low, high = np.quantile(np.concatenate(columns), [_OUTERMOST, 1 - _OUTERMOST])
    if not high > low:
        low -= 0.5
        high += 0.5
    return np.linspace(low, high, _BINS + 1)


def _bars(
    axes: Axes, sides: Values, edges: NDArray[np.float64], facts: list[object]
) -> list[list[object]]:
    """Draw each side's share of images by bin, the inliers filled, and return the data."""
    gridlines(axes)
    axes.locator_params(axis="x", nbins=5)
    lows = edges[:-1].tolist()
    highs = edges[1:].tolist()
    rows: list[list[object]] = []
    for side, values in sides.items():
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        shares = counts / len(values)  # (bins,)
        colour = SIDES[side]
        if side in _INLIERS:
            axes.stairs(100 * shares, edges, fill=True, color=colour, alpha=_FILL, linewidth=0)
        dash: Any = (0, (3, 1.5)) if side == "near" else "-"
        axes.stairs(100 * shares, edges, color=colour, linewidth=1.3, linestyle=dash)
        for low, high, share in zip(lows, highs, shares.tolist(), strict=True):
            rows.append([*facts, side, low, high, share])
    return rows


def _label(axes: NDArray[Any], words: str) -> None:
    for panel in axes[:, 0]:
        panel.set_ylabel("% of images")
    for panel in axes[-1]:
        panel.set_xlabel(words)


def _side_legend(drawing: Drawing, sides: Sequence[str]) -> None:
    handles = []
    for side in sides:
        colour = SIDES[side]
        face: Any = (colour, _FILL) if side in _INLIERS else "none"
        dash: Any = "--" if side == "near" else "-"
        handles.append(Patch(facecolor=face, edgecolor=colour, linestyle=dash, label=_NAMES[side]))
    drawing.legend(handles=handles, loc="outside lower center", ncols=len(handles))
