"""AUROC as a function of what the attacker may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from robust_ood.reporting.figures.canvas import (
    MUTED,
    Figure,
    finish,
    gridlines,
    legend,
    look,
    panels,
    style,
)

Points = Sequence[tuple[float, float]]
"""Radius or size, in pixel fractions, and AUROC; the first is the clean one, at 0."""


def auroc_by_radius(
    lines: Mapping[tuple[str, str], Mapping[str, Points]], norm: str, name: str
) -> Figure:
    """Return AUROC against the radius of the strongest attack, a panel for each network and group,
    a line a detector.

    Args:
        lines: by network and group ("near" or "far"), by detector, radius and AUROC.
        norm: of the radii; "Linf" radii are labelled in 255ths.
        name: of the figure's files.
    """
    columns = ["model", "group", "detector", "norm", "radius", "auroc"]
    rows = [
        [model, group, detector, norm, radius, auroc]
        for (model, group), found in lines.items()
        for detector, points in found.items()
        for radius, auroc in points
    ]
    drops = [(points[0][1] - points[-1][1], where, detector)
             for where, found in lines.items() for detector, points in found.items()]  # fmt: skip
    most, least = max(drops), min(drops)
    alt = (
        f"Lines of AUROC against {norm} radius. The largest fall is that of {most[2]} on {' '.join(most[1])} OOD, by "
        f"{most[0]:.3f}; the smallest that of {least[2]} on {' '.join(least[1])} OOD, by {least[0]:.3f}."
    )
    caption = (
        f"Mean AUROC of each group of OOD sets, both sides attacked, at each {norm} radius under the strongest "
        "attack of that radius; radius 0 is clean. Below the dashed line a detector is worse than a coin."
    )
    return _lines(lines, norm, name, f"AUROC against {norm} radius", caption, alt, columns, rows)


def auroc_by_size(
    lines: Mapping[tuple[str, str], Mapping[str, Points]],
    norm: str,
    name: str,
    attacked: str,
    images: int,
) -> Figure:
    """Return AUROC against the size that perturbations have reached along one attack (Fort 2022,
    Fig. 7).

    Args: as `auroc_by_radius`; attacked: whose images are perturbed; images: how many there are a
    side.
    """
    columns = ["model", "group", "detector", "norm", "size", "auroc"]
    rows = [
        [model, group, detector, norm, size, auroc]
        for (model, group), found in lines.items()
        for detector, points in found.items()
        for size, auroc in points
    ]
    ends = [
        (points[-1][1], where, detector)
        for where, found in lines.items()
        for detector, points in found.items()
    ]
    low, high = min(ends), max(ends)
    alt = (
        f"Lines of AUROC against the {norm} norm of the perturbation. At the right end {high[2]} on "
        f"{' '.join(high[1])} OOD is highest with {high[0]:.3f}, {low[2]} on {' '.join(low[1])} OOD lowest with "
        f"{low[0]:.3f}."
    )
    caption = (
        f"AUROC as {attacked} move away from the clean image in equal gradient steps, at each {norm} size of the "
        f"perturbation (Fort 2022, Fig. 7), from {images} images a side: steep beginnings are vulnerable detectors."
    )
    return _lines(
        lines,
        norm,
        name,
        f"AUROC against {norm} norm, {attacked} perturbed",
        caption,
        alt,
        columns,
        rows,
    )


def _lines(
    lines: Mapping[tuple[str, str], Mapping[str, Points]],
    norm: str,
    name: str,
    title: str,
    caption: str,
    alt: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> Figure:
    models, groups = _each(where[0] for where in lines), _each(where[1] for where in lines)
    detectors = _each(detector for found in lines.values() for detector in found)
    upright = 1 < len(models) <= 4  # networks side by side, groups below each other
    down, across = (groups, models) if upright else (models, groups)
    with style():
        drawing, axes = panels(len(down), len(across), height=2.5, sharey=True)
        for (row, column), one in np.ndenumerate(axes):
            where = (across[column], down[row]) if upright else (down[row], across[column])
            _panel(one, where, lines.get(where, {}), detectors, norm)
            one.set_ylabel("AUROC" if column == 0 else "")
            one.label_outer()
        axes[0, 0].set_ylim(-0.03, 1.03)
        legend(drawing, axes[0, 0])
        return finish(
            drawing, name, title=title, caption=caption, alt=alt, columns=columns, rows=rows
        )


def _panel(
    axes: Axes,
    where: tuple[str, str],
    lines: Mapping[str, Points],
    detectors: Sequence[str],
    norm: str,
) -> None:
    scale = 255 if norm == "Linf" else 1
    gridlines(axes)
    axes.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    for index, detector in enumerate(detectors):
        points = lines.get(detector, ())
        few = len(points) <= 8
        axes.plot(
            [x * scale for x, _ in points],
            [y for _, y in points],
            label=detector,
            linewidth=1.5,
            markersize=4 if few else 0,
            **look(index),
        )
        if few:
            axes.set_xticks(
                sorted({round(x * scale, 6) for found in lines.values() for x, _ in found})
            )
    axes.set_title(f"{where[0]}, {where[1]} OOD", loc="left")
    axes.set_xlabel(f"{norm}, 255ths" if norm == "Linf" else norm)


def _each(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
