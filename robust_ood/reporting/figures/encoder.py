"""Figures of the OOD attack on encoders: pairs, their codes, errors, scores and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from robust_ood.reporting.figures.canvas import (
    FAR,
    INLIERS,
    MUTED,
    NEAR,
    Figure,
    Words,
    finish,
    gridlines,
    legend,
    panels,
    style,
)
from robust_ood.reporting.figures.distributions import bin_edges

_BINS = 40
_MOST_PAIRS = 6
_SMALL = 7.5  # font size over single images
_MOST_LINES = 8

Arrays = Mapping[str, NDArray[Any]]


class Subject(NamedTuple):
    """What a figure is of. start, matched: as rows name them. name: of the figure's files."""

    model: str
    start: str
    matched: str
    name: str

    @property
    def words(self) -> str:
        """The subject in words."""
        return f"{self.model}, {self.matched} matched from {self.start}"


def pairs(arrays: Arrays, subject: Subject) -> Figure:
    """Return inliers, start images and generated images, with the codes of each pair below.

    Source: the OOD-attack paper, Fig. 1, 2, 7, 10, 12 and 25.

    Args:
        arrays: `inliers`, `starts`, `generated` `(n, H, W, C)` uint8, `codes`, `targets` `(n, D)`,
            `mape (n,)`.
        subject: what was matched, from what.
    """
    count = min(_MOST_PAIRS, len(arrays["inliers"]))
    errors = arrays["mape"][:count].tolist()
    rows: list[list[object]] = []
    with style():
        drawing, axes = panels(4, count, height=1.35, width=max(3.6, 1.25 * count))
        for index in range(count):
            for line, side in enumerate(("inliers", "starts", "generated")):
                _show(axes[line, index], arrays[side][index])
            targets = arrays["targets"][index]
            codes = arrays["codes"][index]
            _scatter(axes[3, index], targets, codes)
            axes[3, index].set_title(f"MAPE {errors[index]:.2%}", loc="left", fontsize=_SMALL)
            for place, (target, code) in enumerate(
                zip(targets.tolist(), codes.tolist(), strict=True)
            ):
                rows.append([index, place, target, code])
        for line, label in enumerate(("inlier", "start", "generated", "codes")):
            axes[line, 0].set_ylabel(label, color=MUTED)
        words = Words(
            title=f"Pairs: {subject.words}",
            caption="In-distribution images, the images that the attack started from, and those "
            "that it generated, which the network encodes like the inliers above them. Last row: "
            "the entries of both codes (circles: generated, dots: inlier), which lie on each other "
            "where the attack succeeds (OOD-attack paper, Fig. 1).",
            alt=f"Images and scatter plots of {count} pairs of {subject.words}; mean absolute "
            f"percentage errors from {min(errors):.2%} to {max(errors):.2%}.",
        )
        return finish(drawing, subject.name, words, ["pair", "entry", "inlier", "generated"], rows)


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    if image.shape[2] == 1:
        image = np.repeat(image, 3, axis=2)
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _scatter(axes: Axes, targets: NDArray[Any], codes: NDArray[Any]) -> None:
    """Draw both codes by entry, as the paper does."""
    places = np.arange(len(targets))
    axes.scatter(places, targets, s=3, color=INLIERS, linewidths=0, rasterized=True)
    axes.scatter(
        places, codes, s=9, facecolors="none", edgecolors=FAR, linewidths=0.4, rasterized=True
    )
    axes.set_xticks([])
    axes.tick_params(labelsize=6, length=0)


def error_histograms(errors: Mapping[str, NDArray[Any]], matched: str, name: str) -> Figure:
    """Return histograms of MAPE, a panel for each start.

    Source: the OOD-attack paper, Fig. 3, 4, 8, 9 and 11.

    Args:
        errors: MAPE `(N,)`, fractions, by start.
        matched: what was matched.
        name: of the figure's files.
    """
    rows: list[list[object]] = []
    sentences = []
    with style():
        drawing, axes = panels(1, len(errors), width=max(3.6, 2.4 * len(errors)))
        for panel, (start, values) in zip(axes[0], errors.items(), strict=True):
            percent = 100 * values
            counts, edges = np.histogram(percent, _BINS, range=(0, max(percent.max(), 1e-6)))
            gridlines(panel)
            panel.stairs(counts, edges, fill=True, color=FAR, alpha=0.5)
            panel.set_title(start, loc="left")
            panel.set_xlabel("MAPE, %")
            sentences.append(f"{start}: median {np.median(values):.2%}.")
            for low, high, size in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
                rows.append([matched, start, float(low), float(high), size])
        axes[0, 0].set_ylabel("pairs")
        words = Words(
            title=f"Errors of the {matched} matched",
            caption="Mean absolute percentage error of each pair, mean |z_out - z_in| / max |z_in| "
            "(OOD-attack paper, Sec. 3); of a score relative to the largest of the inliers'.",
            alt=f"Histograms of the error of {matched}. {' '.join(sentences)}",
        )
        columns = ["matched", "start", "bin_low", "bin_high", "pairs"]
        return finish(drawing, name, words, columns, rows)


def score_histograms(scores: Arrays, detector: str, auroc: float, subject: Subject) -> Figure:
    """Return histograms of a detector's scores of inliers, starts and generated images.

    Source: the OOD-attack paper, Fig. 5 and 13 to 23.

    Args:
        scores: `(N,)` by side: "inliers", "starts", "generated".
        detector: its label.
        auroc: of inliers against generated images.
        subject: what was matched, from what.
    """
    colours = {"inliers": INLIERS, "starts": NEAR, "generated": FAR}
    rows: list[list[object]] = []
    with style():
        drawing, axes = panels(1, 2, width=7.2)
        for panel, other in zip(axes[0], ("starts", "generated"), strict=True):
            shown = {side: scores[side].astype(np.float64) for side in ("inliers", other)}
            edges = bin_edges(list(shown.values()))
            gridlines(panel)
            for side, values in shown.items():
                counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
                shares = 100 * counts / len(values)
                panel.stairs(shares, edges, fill=side == "inliers", color=colours[side], alpha=0.28)
                panel.stairs(shares, edges, color=colours[side], linewidth=1.3, label=side)
                for low, high, share in zip(edges[:-1], edges[1:], shares.tolist(), strict=True):
                    rows.append([detector, side, float(low), float(high), share])
            panel.set_xlabel(f"score of {detector}")
            panel.locator_params(axis="x", nbins=5)
            panel.legend()
        axes[0, 0].set_ylabel("% of images")
        words = Words(
            title=f"Scores of {detector}: {subject.words}",
            caption=f"Scores of inliers against start images, left, and against generated ones, "
            f"right: AUROC {auroc:.3f} (OOD-attack paper, Fig. 13).",
            alt=f"Histograms of the {detector} score of {subject.words}; AUROC after the attack "
            f"{auroc:.3f}.",
        )
        columns = ["detector", "side", "bin_low", "bin_high", "percent"]
        return finish(drawing, f"{subject.name}-{detector}", words, columns, rows)


def losses(arrays: Arrays, subject: Subject) -> Figure:
    """Return the loss of single pairs over the iterations.

    Source: the OOD-attack paper, Fig. 24.

    Args:
        arrays: `iterations (L,)`, `losses (L, N)`.
        subject: what was matched, from what.
    """
    iterations = arrays["iterations"]
    values = arrays["losses"][:, :_MOST_LINES]  # (L, n)
    with style():
        drawing, axes = panels(1, 1, width=4.8)
        panel = axes[0, 0]
        gridlines(panel)
        for index in range(values.shape[1]):
            label = "single pairs" if index == 0 else None
            panel.plot(iterations, values[:, index], color=FAR, linewidth=0.7, label=label)
        middle = np.median(arrays["losses"], axis=1)
        panel.plot(iterations, middle, color=INLIERS, linewidth=1.6, label="median of all")
        if (values > 0).any():
            panel.set_yscale("log")
        panel.set_xlabel("iteration")
        panel.set_ylabel("squared distance of codes")
        legend(drawing, panel)
        words = Words(
            title=f"Loss: {subject.words}",
            caption="Squared distance of codes over the iterations (OOD-attack paper, Fig. 24).",
            alt=f"Lines of the loss of {subject.words}; its median falls from {middle[0]:.3g} to "
            f"{middle.min():.3g}.",
        )
        rows = _loss_rows(iterations, values)
        return finish(drawing, subject.name, words, ["iteration", "pair", "loss"], rows)


def _loss_rows(iterations: NDArray[Any], values: NDArray[Any]) -> Sequence[Sequence[object]]:
    rows = []
    for iteration, line in zip(iterations.tolist(), values.tolist(), strict=True):
        for pair, value in enumerate(line):
            rows.append([iteration, pair, value])
    return rows
