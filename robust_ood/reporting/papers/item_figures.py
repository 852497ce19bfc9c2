"""Figures that only the papers draw: detectors as bars, and losses at attacked safe spots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from robust_ood.errors import UserError
from robust_ood.reporting.figures.canvas import (
    LINES,
    MUTED,
    SIDES,
    Figure,
    Words,
    finish,
    gridlines,
    legend,
    panels,
    slug,
    style,
)
from robust_ood.reporting.papers.measured import Measurement

LOSSES = "losses.npz"
"""The file of losses: `(N,)` by "GROUP: SET: images" and "GROUP: SET: spots"."""
_BINS = 40
_TITLES = {"auroc": "AUROC", "fpr95": "FPR95", "fpr95_ood_positive": "FPR95, OOD positive"}


def bars(
    measurements: Sequence[Measurement],
    metrics: Sequence[str],
    only: Mapping[str, Sequence[str]],
) -> Iterator[Figure]:
    """Yield, for each group of OOD images, a figure of detectors by network.

    Source: PRO, Fig. 1, 4 and 5.

    Args:
        measurements: clean ones are drawn.
        metrics: a panel each.
        only: by field of `ResultKey`, the values that may be drawn.
    """
    by_ood: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        key = measurement.key
        is_wanted = all(getattr(key, name) in values for name, values in only.items())
        if is_wanted and key.detector and key.attacked == "none":
            by_ood.setdefault(key.ood, []).append(measurement)
    for ood, chosen in by_ood.items():
        yield _bars(chosen, metrics, ood)


def _bars(measurements: Sequence[Measurement], metrics: Sequence[str], ood: str) -> Figure:
    networks = list(dict.fromkeys(measurement.key.network for measurement in measurements))
    detectors = list(dict.fromkeys(measurement.key.detector for measurement in measurements))
    values = {}
    for key, numbers in measurements:
        for metric in metrics:
            values[key.network, key.detector, metric] = numbers[metric]
    height = 0.8 / len(networks)
    rows: list[list[object]] = []
    with style():
        drawing, axes = panels(1, len(metrics), height=0.9 + 0.26 * len(detectors), sharey=True)
        for panel, metric in zip(axes[0], metrics, strict=True):
            gridlines(panel, "x")
            for number, network in enumerate(networks):
                places = []
                lengths = []
                for place, detector in enumerate(detectors):
                    if (network, detector, metric) in values:
                        places.append(place + (number + 0.5) * height - 0.4)
                        lengths.append(values[network, detector, metric])
                        rows.append([network, detector, ood, metric, lengths[-1]])
                colour = LINES[number % len(LINES)]
                panel.barh(places, lengths, height=height, color=colour, label=network)
            panel.set_yticks(range(len(detectors)), detectors)
            panel.set_ylim(len(detectors) - 0.5, -0.5)
            panel.set_xlim(0, 1)
            panel.set_title(_TITLES.get(metric, metric), loc="left")
        legend(drawing, axes[0, 0])
        words = Words(
            title=f"Detectors against {ood}",
            caption=f"Clean inliers against {ood}, a bar for each network. AUROC: higher is "
            "better; FPR95: lower is better.",
            alt=f"Bars of {len(detectors)} detectors on {', '.join(networks)} against {ood}.",
        )
        columns = ["network", "detector", "ood", "metric", "value"]
        return finish(drawing, slug("detectors", ood), words, columns, rows)


def loss_histograms(folder: Path) -> Iterator[Figure]:
    """Yield histograms of the loss at images (left) and at attacked safe spots (right).

    Source: safe spots paper, Fig. 3. The dotted line accepts 95 % of the inliers.

    Args:
        folder: of `robust-ood safe-spots --losses true`.
    """
    try:
        with np.load(folder / LOSSES) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise UserError(f"results: {folder / LOSSES} is missing or damaged") from error
    rows: list[list[object]] = []
    with style():
        drawing, axes = panels(1, 2, sharey=True)
        for panel, place in zip(axes[0], ("images", "spots"), strict=True):
            gridlines(panel)
            largest = max(float(values.max()) for values in arrays.values())
            groups: dict[str, list[np.ndarray]] = {}
            for name, values in arrays.items():
                group, _, rest = name.partition(": ")
                if rest.endswith(f": {place}"):
                    groups.setdefault(group, []).append(values)
            for number, (group, members) in enumerate(groups.items()):
                values = np.concatenate(members)
                counts, edges = np.histogram(values, _BINS, (0.0, max(largest, 1e-6)))
                shares = counts / len(values)
                colour = SIDES.get(group, LINES[number])
                panel.stairs(shares, edges, fill=True, color=colour, alpha=0.45, label=group)
                for low, high, share in zip(edges[:-1], edges[1:], shares, strict=True):
                    rows.append([place, group, float(low), float(high), float(share)])
            accepted = float(np.quantile(np.concatenate(groups["id"]), 0.95))
            panel.axvline(accepted, color=MUTED, linestyle=(0, (1, 2)))
            titles = {"images": "loss of the images", "spots": "loss of attacked safe spots"}
            panel.set_xlabel(titles[place])
        axes[0, 0].set_ylabel("share of images")
        legend(drawing, axes[0, 0])
        words = Words(
            title="Losses at images and at attacked safe spots",
            caption="Cross-entropy of the predicted class (safe spots paper, Fig. 3). The dotted "
            "line accepts 95 % of the inliers.",
            alt="Histograms of the loss of inliers and OOD sets, before and after.",
        )
        columns = ["place", "group", "bin_low", "bin_high", "share"]
        yield finish(drawing, slug("losses", folder.name), words, columns, rows)
