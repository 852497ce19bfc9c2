"""What all figures share: their legends fit, and their axes are labelled with readable numbers."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from robust_ood.reporting.figures.canvas import Words, finish, legend, panels, style

WORDS = Words(title="t", caption="c", alt="a")


@pytest.mark.parametrize("axis", ["x", "y"])
def test_logarithmic_axes_have_plain_numbers(axis):
    with style():
        drawing, axes = panels(1, 1)
        axes[0, 0].plot([0.001, 0.1], [0.001, 0.1])
        getattr(axes[0, 0], f"set_{axis}scale")("log")
        figure = finish(drawing, "powers", WORDS, ["x"], [[1]])
    assert "mathdefault" not in figure.svg
    labels = getattr(axes[0, 0], f"{axis}axis").get_ticklabels()
    assert {"0.01", "0.1"} <= {label.get_text() for label in labels}


@pytest.mark.parametrize("label", ["msp", "relative-mahalanobis, 384 px", "a" * 60])
def test_a_legend_is_no_wider_than_its_figure(label):
    with style():
        drawing, axes = panels(1, 1)
        for number in range(6):
            axes[0, 0].plot([0, 1], [0, number], label=f"{label} {number}")
        legend(drawing, axes[0, 0])
        drawing.canvas.draw()
        box = drawing.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= drawing.get_figwidth() * drawing.dpi
