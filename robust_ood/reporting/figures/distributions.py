"""Distributions of scores, and of their shifts under a small perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from robust_ood.metrics import deployed_threshold
from robust_ood.reporting.figures.canvas import (
    MUTED,
    SIDES,
    Figure,
    finish,
    gridlines,
    panels,
    style,
)

_BINS = 40
_NAMES = {"id": "in-distribution", "in": "in-distribution", "near": "near OOD", "far": "far OOD"}
Values = Mapping[str, NDArray[np.float64]]
"""Values by side: "id" (or "in"), "near", "far"."""


def score_histograms(
    scores: Mapping[str, tuple[Values, Values]],
    attacks: Mapping[str, str],
    detector: str,
    name: str,
) -> Figure:
    """Return histograms of one detector's scores, clean and attacked, a row for each network (ALOE
    paper, Fig. 2).

    Args:
        scores: by network, clean and attacked scores of each side.
        attacks: by network, the attack's label.
        detector: its name.
        name: of the figure's files.
    """
    rows: list[list[object]] = []
    words = []
    with style():
        drawing, axes = panels(len(scores), 2, height=1.9, sharex="row", sharey="row")
        for line, (model, both) in enumerate(scores.items()):
            edges = bin_edges([values for sides in both for values in sides.values()])
            threshold = deployed_threshold(torch.from_numpy(both[0]["id"]))
            for column, (sides, what) in enumerate(
                zip(both, ("clean", attacks[model]), strict=True)
            ):
                rows += _bars(axes[line, column], sides, edges, [model, detector, what])
                axes[line, column].axvline(
                    threshold, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2))
                )
                title = (
                    f"{model}, clean" if column == 0 else f"{model}, both sides attacked by {what}"
                )
                axes[line, column].set_title(title, loc="left")
            words.append(f"{model}: {_accepted(both, threshold)}")
            axes[line, 0].set_ylabel("% of images")
        for one in axes[-1]:
            one.set_xlabel(f"{detector} score, higher = more in-distribution")
        _side_legend(
            drawing, list(dict.fromkeys(side for both in scores.values() for side in both[0]))
        )
        return finish(
            drawing,
            name,
            title=f"Scores of {detector}",
            caption="Scores of all images, inliers against OOD sets pooled by group, clean and under the attack that "
            "costs this detector the most AUROC (ALOE paper, Fig. 2). Right of the dashed line lie 95 % of the clean "
            "inliers: what a deployed detector accepts. The outermost bars hold what lies beyond.",
            alt=f"Histograms of {detector} scores. {' '.join(words)}",
            columns=["model", "detector", "attack", "side", "bin_low", "bin_high", "share"],
            rows=rows,
        )


def _accepted(both: tuple[Values, Values], threshold: float) -> str:
    """Say what the threshold of 95 % of clean inliers accepts, before and after."""
    parts = []
    for side in both[0]:
        before, after = (float((sides[side] >= threshold).mean()) for sides in both)
        parts.append(f"{_NAMES[side]} accepted {before:.0%} clean and {after:.0%} attacked")
    return ", ".join(parts) + "."


def score_shifts(
    shifts: Mapping[str, tuple[NDArray[Any], Values]], detector: str, name: str
) -> Figure:
    """Return histograms of score shifts under one gradient step, a row for each network (PRO paper,
    Fig. 3 and 7).

    Args:
        shifts: by network, step sizes `(S,)` and shifts `(S, N)` by side.
        detector: its name.
        name: of the figure's files.
    """
    rows: list[list[object]] = []
    words = []
    sizes = [float(size) for size in next(iter(shifts.values()))[0]]
    with style():
        drawing, axes = panels(len(shifts), len(sizes), height=1.9)
        for line, (model, (_, sides)) in enumerate(shifts.items()):
            for column, size in enumerate(sizes):
                own = {side: values[column] for side, values in sides.items()}
                rows += _bars(
                    axes[line, column], own, bin_edges(list(own.values())), [model, detector, size]
                )
                axes[line, column].axvline(0, color=MUTED, linewidth=0.9)
                axes[line, column].set_title(f"{model}, step {size:g}", loc="left")
                medians = ", ".join(
                    f"{_NAMES[side]} {np.median(values):.3g}" for side, values in own.items()
                )
                words.append(f"{model}, step {size:g}: median shift {medians}.")
            axes[line, 0].set_ylabel("% of images")
        for one in axes[-1]:
            one.set_xlabel(f"change of the {detector} score")
        _side_legend(drawing, list(next(iter(shifts.values()))[1]))
        return finish(
            drawing,
            name,
            title=f"Score shifts of {detector} under one step",
            caption="Change of the score after one sign-gradient step that lowers it, for inliers and outliers alike, "
            "in pixel fractions (PRO paper, Fig. 3 and 7). PRO separates well where OOD images shift further than "
            "inliers. The outermost bars hold what lies beyond.",
            alt=f"Histograms of the change of {detector} scores. {' '.join(words)}",
            columns=["model", "detector", "step_size", "side", "bin_low", "bin_high", "share"],
            rows=rows,
        )


def bin_edges(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return edges of equal bins over all but the outermost 0.5 % of the values at either end."""
    low, high = np.quantile(np.concatenate(parts), [0.005, 0.995])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, _BINS + 1)


def _bars(
    axes: Axes, sides: Values, edges: NDArray[np.float64], facts: list[object]
) -> list[list[object]]:
    """Draw each side's share of images by bin, the inliers filled, and return the data."""
    gridlines(axes)
    axes.locator_params(axis="x", nbins=5)
    rows: list[list[object]] = []
    for side, values in sides.items():
        counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
        shares = counts / len(values)
        filled = side in ("id", "in")
        if filled:
            axes.stairs(100 * shares, edges, fill=True, color=SIDES[side], alpha=0.28, linewidth=0)
        axes.stairs(
            100 * shares,
            edges,
            color=SIDES[side],
            linewidth=1.3,
            linestyle=(0, (3, 1.5)) if side == "near" else "-",
        )
        rows += [
            [*facts, side, low, high, share]
            for low, high, share in zip(
                edges[:-1].tolist(), edges[1:].tolist(), shares.tolist(), strict=True
            )
        ]
    return rows


def _side_legend(drawing: Any, sides: Sequence[str]) -> None:
    handles = [
        Patch(facecolor=(SIDES[side], 0.28) if side in ("id", "in") else "none", edgecolor=SIDES[side],
              linestyle="--" if side == "near" else "-", label=_NAMES[side])
        for side in sides
    ]  # fmt: skip
    drawing.legend(handles=handles, loc="outside lower center", ncols=len(handles))
