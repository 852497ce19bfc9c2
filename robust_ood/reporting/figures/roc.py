"""ROC curves, clean and attacked: which share of inliers stays at which share of OOD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from robust_ood.reporting.figures.canvas import (
    FAR,
    INLIERS,
    MUTED,
    Figure,
    Words,
    finish,
    gridlines,
    legend,
    panels,
    style,
)

SMALLEST = 1e-3
"""The share of OOD at which the logarithmic axis begins."""

# Shares of OOD accepted, (P,): as dense near zero as elsewhere.
GRID = np.unique(np.concatenate([np.linspace(0, 1, 101), np.logspace(-3, 0, 61)]))

_LOOKS = {"clean": (INLIERS, "-"), "attacked": (FAR, (0, (4, 2)))}
_FILL = 0.2  # opacity of bands
_MOST_ACROSS = 4  # networks side by side


class Roc(NamedTuple):
    """One curve over `GRID`: shares of inliers accepted `(P,)`, and their deviation `(P,)`."""

    accepted: NDArray[np.float64]
    deviation: NDArray[np.float64] | None = None


Curves = Mapping[tuple[str, str], Mapping[str, Roc]]
"""By network (or recipe) and group, "clean" and "attacked"."""


def roc(inliers: NDArray[np.float64], outliers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of inliers accepted at each share of OOD in `GRID`, `(P,)`.

    It is that of the lowest threshold that accepts no larger share of OOD, so ties count against
    the detector.

    Args:
        inliers: scores `(N,)`.
        outliers: scores `(M,)`.
    """
    descending = np.sort(outliers)[::-1]
    ascending = np.sort(inliers)
    allowed = np.floor(GRID * len(outliers) + 1e-9).astype(int)
    # The first outlier that must be rejected; with all allowed, there is none.
    highest = np.append(descending, -np.inf)[allowed]
    rejected = np.searchsorted(ascending, highest, side="right") / len(inliers)
    return np.asarray(1 - rejected, dtype=np.float64)


def mean_roc(curves: Sequence[NDArray[np.float64]]) -> Roc:
    """Return the mean of checkpoints' curves at each share of OOD, with the deviation."""
    stacked = np.stack(curves)  # (checkpoints, P)
    if len(curves) == 1:
        return Roc(stacked[0])
    return Roc(stacked.mean(axis=0), stacked.std(axis=0, ddof=1))


def roc_figure(curves: Curves, detector: str, name: str, *, logarithmic: bool) -> Figure:
    """Return a detector's ROC curves, a row for each network and a column for each group.

    Args:
        curves: by network and group.
        detector: its name.
        name: of the figure's files.
        logarithmic: the axis of the share of OOD, from `SMALLEST`.
    """
    models = list(dict.fromkeys(model for model, _ in curves))
    groups = list(dict.fromkeys(group for _, group in curves))
    # A few networks are side by side, so that curves are not drawn out.
    networks_across = len(groups) == 1 and 1 < len(models) <= _MOST_ACROSS
    keys = [[(model, group) for group in groups] for model in models]
    if networks_across:
        keys = [[(model, groups[0]) for model in models]]
    width = min(7.2, 3.6 * len(keys[0]))
    with style():
        drawing, axes = panels(
            len(keys), len(keys[0]), width=width, height=2.7, sharex=True, sharey=True
        )
        for (row, column), panel in np.ndenumerate(axes):
            model, group = keys[row][column]
            _panel(panel, curves.get((model, group), {}), logarithmic=logarithmic)
            panel.set_title(f"{model}, {group} OOD", loc="left")
            if row == len(keys) - 1:
                panel.set_xlabel("share of OOD accepted")
            if column == 0:
                panel.set_ylabel("share of inliers accepted")
        legend(drawing, axes[0, 0])
        words = _words(curves, detector, logarithmic=logarithmic)
        columns = ["model", "group", "detector", "images", "ood_accepted", "inliers_accepted",
                   "deviation"]  # fmt: skip
        return finish(drawing, name, words, columns, _rows(curves, detector))


def _panel(axes: Axes, curves: Mapping[str, Roc], *, logarithmic: bool) -> None:
    gridlines(axes)
    first = SMALLEST if logarithmic else 0.0
    shares = GRID[first <= GRID]
    axes.plot(shares, shares, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), label="chance")
    for label, curve in curves.items():
        colour, dashes = _LOOKS[label]
        accepted = curve.accepted[first <= GRID]
        axes.plot(shares, accepted, color=colour, linestyle=dashes, linewidth=1.5, label=label)
        if curve.deviation is not None:
            deviation = curve.deviation[first <= GRID]
            low = np.clip(accepted - deviation, 0, 1)
            high = np.clip(accepted + deviation, 0, 1)
            axes.fill_between(shares, low, high, color=colour, alpha=_FILL, linewidth=0)
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlim(first, 1)
    axes.set_ylim(-0.02, 1.02)


def _words(curves: Curves, detector: str, *, logarithmic: bool) -> Words:
    scale = ", logarithmic axis" if logarithmic else ""
    bands = ""
    if any(curve.deviation is not None for lines in curves.values() for curve in lines.values()):
        bands = " Bands: one standard deviation over the checkpoints of a recipe."
    sentences = []
    for (model, group), lines in curves.items():
        for label, curve in lines.items():
            share = float(np.interp(0.05, GRID, curve.accepted))
            sentences.append(f"{model}, {group} OOD, {label}: {share:.0%} of the inliers.")
    return Words(
        title=f"ROC of {detector}{scale}",
        caption="Which share of inliers is accepted where a share of OOD is, clean and under the "
        "attack that costs this detector the most AUROC, on both sides; the OOD sets of a group "
        f"are pooled. The area below is the AUROC; the thin line is a coin.{bands}",
        alt=f"ROC curves of {detector}. Where 5 % of OOD are accepted: {' '.join(sentences)}",
    )


def _rows(curves: Curves, detector: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for (model, group), lines in curves.items():
        for label, curve in lines.items():
            for index, share in enumerate(GRID.tolist()):
                deviation = 0.0
                if curve.deviation is not None:
                    deviation = float(curve.deviation[index])
                accepted = float(curve.accepted[index])
                rows.append([model, group, detector, label, share, accepted, deviation])
    return rows
