"""Curves of a training run: losses, accuracies, AUROCs, learning rate and speed over its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

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

Curve = Sequence[tuple[int, float]]
_MOST = 12  # lines of one figure; the CSV has all
_FEW = 30  # up to so many points, each has a marker


class Group(NamedTuple):
    """Curves of one figure: its files' name, its words, and whether it ends in [0, 1]."""

    name: str
    title: str
    caption: str
    is_share: bool


GROUPS = (
    Group("loss", "Loss", "Terms of the training loss at each logged step, and the loss of clean "
          "validation images.", False),
    Group("auroc", "Clean and robust AUROC", "Of validation images against validation OOD images; "
          "fgsm and pgd compare one step of attack with ten.", True),
    Group("accuracy", "Accuracy", "On training batches as the loss sees them, on clean validation "
          "images, and on attacked ones.", True),
    Group("learning-rate", "Learning rate", "Of the first group of parameters.", False),
    Group("speed", "Images per second", "Inliers and outliers of all processes together, as "
          "TensorBoard has them.", False),
)  # fmt: skip


def group_of(name: str) -> str | None:
    """Return the figure that a logged number belongs to; None for one that no figure shows."""
    kinds = {"learning_rate": "learning-rate", "images_per_second": "speed"}
    last = name.rpartition("/")[2]
    if last in kinds:
        return kinds[last]
    for kind in ("loss", "auroc", "accuracy"):
        if last.endswith(kind):
            return kind
    return None


def training_figures(curves: Mapping[str, Curve], alarms: Sequence[int]) -> Iterator[Figure]:
    """Yield a figure for each group of curves that there are.

    Args:
        curves: by name.
        alarms: steps at which catastrophic overfitting was seen, marked by lines.
    """
    for group in GROUPS:
        chosen = {}
        for name, curve in curves.items():
            if group_of(name) == group.name:
                chosen[name] = curve
        if chosen:
            yield _draw(group, chosen, alarms)


def _draw(group: Group, curves: Mapping[str, Curve], alarms: Sequence[int]) -> Figure:
    rows: list[list[object]] = []
    for name, curve in curves.items():
        for step, value in curve:
            rows.append([name, step, value])
    # The general ones first: the fewer parts a name has, the more it stands for.
    shown = sorted(curves, key=lambda name: (name.count("/"), list(curves).index(name)))[:_MOST]
    caption = group.caption
    if len(shown) < len(curves):
        caption += f" Shown are {len(shown)} of {len(curves)} curves; the CSV has all."
    marked = group.is_share and bool(alarms)
    if marked:
        caption += " Dashed lines: catastrophic overfitting."
    last = "; ".join(f"{name} ends at {curves[name][-1][1]:.4g}" for name in shown[:4])
    words = Words(group.title, caption, f"{group.title} over steps: {last}.")
    with style():
        drawing, axes = panels(1, 1, height=2.9)
        panel = axes[0, 0]
        gridlines(panel)
        for index, name in enumerate(shown):
            looks = dict(look(index))
            if len(curves[name]) > _FEW:
                looks["marker"] = "none"
            steps = [step for step, _ in curves[name]]
            values = [value for _, value in curves[name]]
            panel.plot(steps, values, label=name, linewidth=1.4, markersize=3, **looks)
        if group.is_share:
            panel.set_ylim(-0.03, 1.03)
        if marked:
            for step in alarms:
                panel.axvline(step, color=MUTED, linewidth=1.0, linestyle=(0, (3, 3)))
        panel.set_xlabel("optimiser step")
        legend(drawing, panel, 3)
        return finish(drawing, group.name, words, ["curve", "step", "value"], rows)
