"""Figures of curves: legends that fit, and lines that end where something was measured."""

from __future__ import annotations

import numpy as np
import pytest

from robust_ood.evaluation.pictures import Picture

pytest.importorskip("matplotlib")
from robust_ood.reporting import gallery
from robust_ood.reporting.figures.lines import Point, auroc_by_size


@pytest.mark.parametrize(
    "names",
    [
        ["msp", "energy"],
        ["mahalanobis, 32 px", "mahalanobis, 384 px", "relative, 32 px", "relative, 384 px"],
        [f"relative-mahalanobis of the network {index}, 384 px" for index in range(9)],
        [f"network {index}, " + 70 * "a" for index in range(3)],
    ],
)
def test_a_legend_is_inside_its_drawing_and_leaves_the_panels_their_height(names):
    points = [Point(size, 1 - size, 0.0) for size in (0.0, 0.5, 1.0)]
    lines = {("net", "near"): dict.fromkeys(names, points)}
    drawing = auroc_by_size(lines, "L2", "norm", "outliers", 9).drawing
    (legend,) = drawing.legends
    box = legend.get_window_extent()
    assert drawing.bbox.x0 <= box.x0
    assert box.x1 <= drawing.bbox.x1
    assert [text.get_text() for text in legend.get_texts()] == names
    assert drawing.axes[0].get_window_extent().height / drawing.dpi > 1.4  # inches


def test_a_curve_ends_where_its_images_have_ended():
    """A perturbation of few pixels ends at a smaller L2 norm than one of many."""
    sizes = {"32 px": 1.0, "384 px": 4.0}
    pictures = []
    for label, largest in sizes.items():
        steps = np.linspace(0, largest, 3)[:, None].repeat(4, axis=1)  # (steps + 1, N)
        arrays = {
            "in_scores": np.ones((1, 4)),
            "in_l2": np.zeros((1, 4)),
            "in_linf": np.zeros((1, 4)),
            "near_scores": steps,
            "near_l2": steps,
            "near_linf": steps,
        }
        pictures.append(Picture("curves", "net", "msp", arrays, label=label))
    lines = gallery._curve_panels(pictures, "L2", both=False)["net", "near"]
    ends = {name: points[-1].size for name, points in lines.items()}
    assert ends == {f"msp, {label}": largest for label, largest in sizes.items()}
    for points in lines.values():
        assert points[0].size == 0
