"""AUROC as a function of what the attacker is allowed to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from robust_ood.reporting.figures.canvas import (
    MUTED,
    Figure,
    Words,
    finish,
    gridlines,
    legend,
    look,
    panels,
    style,
)


class Point(NamedTuple):
    """Radius or size, in pixel fractions, and AUROC, with its deviation over checkpoints."""

    size: float
    auroc: float
    deviation: float = 0.0


Points = Sequence[Point]
"""The first point is the clean one, at 0."""

Panels = Mapping[tuple[str, str], Mapping[str, Points]]
"""By network and group ("near" or "far"), by detector, its points."""

Labelled = tuple[float, tuple[str, str], str]
"""A number with the panel and the detector that it belongs to."""

_FEW = 8  # up to so many points, each has a marker and a tick
_ENDS = 2  # points of a curve with one radius: clean and attacked
_FILL = 0.2  # opacity of bands
_MOST_ACROSS = 4  # networks side by side


def auroc_by_radius(lines: Panels, norm: str, name: str) -> Figure:
    """Return AUROC against the radius of the strongest attack, a line for each detector.

    Args:
        lines: radius and AUROC; each network and group gets a panel.
        norm: of the radii; "Linf" radii are labelled in 255ths.
        name: of the figure's files.
    """
    falls = []
    for panel, detectors in lines.items():
        for detector, points in detectors.items():
            falls.append((points[0].auroc - points[-1].auroc, panel, detector))
    largest = max(falls)
    smallest = min(falls)
    words = Words(
        title=f"AUROC against {norm} radius",
        caption=f"Mean AUROC of each group of OOD sets, both sides attacked, at each {norm} radius "
        "under the strongest attack of that radius; radius 0 is clean. Below the dashed line a "
        f"detector is worse than chance.{_band_words(lines)}",
        alt=f"Lines of AUROC against {norm} radius. The largest fall is that of "
        f"{_subject(largest)}, by {largest[0]:.3f}; the smallest that of {_subject(smallest)}, by "
        f"{smallest[0]:.3f}.",
    )
    return _draw(lines, norm, name, words, "radius")


def auroc_by_size(lines: Panels, norm: str, name: str, attacked: str, images: int) -> Figure:
    """Return AUROC against the size that perturbations have reached along one attack.

    Source: Fort 2022, Fig. 7.

    Args:
        lines: size and AUROC; each network and group gets a panel.
        norm: of the sizes; "Linf" sizes are labelled in 255ths.
        name: of the figure's files.
        attacked: whose images are perturbed.
        images: how many there are on each side.
    """
    ends = []
    for panel, detectors in lines.items():
        for detector, points in detectors.items():
            ends.append((points[-1].auroc, panel, detector))
    lowest = min(ends)
    highest = max(ends)
    words = Words(
        title=f"AUROC against {norm} norm, {attacked} perturbed",
        caption=f"AUROC as {attacked} move away from the clean image in equal gradient steps, at "
        f"each {norm} size of the perturbation (Fort 2022, Fig. 7), from {images} images on each "
        "side. A steep beginning is a vulnerable detector. A line ends at the median size that its "
        "perturbations reach.",
        alt=f"Lines of AUROC against the {norm} norm of the perturbation. Where they end, "
        f"{_subject(highest)} is highest with {highest[0]:.3f}, {_subject(lowest)} lowest with "
        f"{lowest[0]:.3f}.",
    )
    return _draw(lines, norm, name, words, "size")


def _band_words(lines: Panels) -> str:
    if not _has_bands(lines):
        return ""
    return " Bands or bars: one standard deviation over the checkpoints of a recipe."


def _has_bands(lines: Panels) -> bool:
    return any(
        point.deviation
        for detectors in lines.values()
        for points in detectors.values()
        for point in points
    )


def _subject(labelled: Labelled) -> str:
    _, (model, group), detector = labelled
    return f"{detector} on {model} {group} OOD"


def _draw(lines: Panels, norm: str, name: str, words: Words, x_name: str) -> Figure:
    models = _unique(model for model, _ in lines)
    groups = _unique(group for _, group in lines)
    detectors: dict[str, None] = {}  # in order, each once
    for panel_lines in lines.values():
        detectors.update(dict.fromkeys(panel_lines))
    # A few networks are side by side, with the groups below each other; many are the other way.
    networks_across = 1 < len(models) <= _MOST_ACROSS
    down = models
    across = groups
    if networks_across:
        down = groups
        across = models
    with style():
        drawing, axes = panels(len(down), len(across), height=2.5, sharey=True)
        for (row, column), panel in np.ndenumerate(axes):
            key = (down[row], across[column])
            if networks_across:
                key = (across[column], down[row])
            _panel(panel, key, lines.get(key, {}), list(detectors), norm)
            if column == 0:
                panel.set_ylabel("AUROC")
            panel.label_outer()
        axes[0, 0].set_ylim(-0.03, 1.03)
        legend(drawing, axes[0, 0])
        columns = ["model", "group", "detector", "norm", x_name, "auroc", "deviation"]
        return finish(drawing, name, words, columns, _rows(lines, norm))


def _rows(lines: Panels, norm: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for (model, group), detectors in lines.items():
        for detector, points in detectors.items():
            for point in points:
                rows.append([model, group, detector, norm, *point])
    return rows


def _panel(
    axes: Axes,
    key: tuple[str, str],
    lines: Mapping[str, Points],
    detectors: Sequence[str],
    norm: str,
) -> None:
    scale = 255 if norm == "Linf" else 1
    gridlines(axes)
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    # Detectors without points are drawn too: each keeps its colour, and the legend names all.
    for index, detector in enumerate(detectors):
        _line(axes, lines.get(detector, ()), detector, index, scale)
    if any(0 < len(points) <= _FEW for points in lines.values()):
        axes.set_xticks(_ticks(lines, scale))
    model, group = key
    axes.set_title(f"{model}, {group} OOD", loc="left")
    axes.set_xlabel(f"{norm}, 255ths" if norm == "Linf" else norm)


def _line(axes: Axes, points: Points, detector: str, index: int, scale: float) -> None:
    """Draw a detector's points, and the line through them if there is more than one radius."""
    radii = [point.size * scale for point in points]
    aurocs = np.array([point.auroc for point in points])
    deviations = np.array([point.deviation for point in points])
    looks = dict(look(index))
    if len(points) <= _ENDS:
        looks["linestyle"] = "none"  # nothing is known between clean and the one radius
        if deviations.any():
            axes.errorbar(radii, aurocs, deviations, fmt="none", ecolor=looks["color"], capsize=3)
    elif deviations.any():
        low = np.clip(aurocs - deviations, 0, 1)
        high = np.clip(aurocs + deviations, 0, 1)
        axes.fill_between(radii, low, high, color=looks["color"], alpha=_FILL, linewidth=0)
    axes.plot(
        radii,
        aurocs,
        # matplotlib leaves labels out of a legend that begin with an underscore.
        label=f" {detector}" if detector.startswith("_") else detector,
        linewidth=1.5,
        markersize=4 if len(points) <= _FEW else 0,
        **looks,
    )


def _ticks(lines: Mapping[str, Points], scale: int) -> list[float]:
    ticks: set[float] = set()
    for points in lines.values():
        for point in points:
            # Radii that differ by rounding alone get one tick.
            ticks.add(round(point.size * scale, 6))
    return sorted(ticks)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
