"""Figures around single images: the landscape of the score, and what an attack changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from robust_ood.reporting.figures.canvas import (
    DIVERGING,
    MUTED,
    RULE,
    Figure,
    Words,
    finish,
    panels,
    style,
)

_LINE = "#20242f"  # on the map, which is light in either theme
_CONTOURS = 14
_SMALL = 7.5  # font size of the titles of single images


class AttackedImages(NamedTuple):
    """Images before and after an attack.

    clean, attacked: `(N, H, W, C)` uint8. before, after: true scores `(N,)`. groups: of each image,
    "in", "near" or "far". sets: the name of its set.
    """

    clean: NDArray[Any]
    attacked: NDArray[Any]
    before: NDArray[Any]
    after: NDArray[Any]
    groups: Sequence[str]
    sets: Sequence[str]


def landscapes(
    offsets: NDArray[Any],
    scores: NDArray[Any],
    groups: Sequence[str],
    sets: Sequence[str],
    subject: str,
    name: str,
) -> Figure:
    """Return the change of a score over two random directions around images.

    Source: PRO paper, Fig. 6.

    Args:
        offsets: `(P,)` root mean square changes of the pixels, increasing, 0 in the middle.
        scores: `(N, P, P)`, the first direction along the last axis.
        groups: of each image, "in", "near" or "far".
        sets: of each image, the name of its set.
        subject: network and detector.
        name: of the figure's files.
    """
    middle = len(offsets) // 2
    centres = scores[:, middle, middle]  # (N,)
    changes = scores - centres[:, None, None]  # (N, P, P)
    reach = float(np.abs(changes).max()) or 1.0  # a constant score still needs a colour scale
    across = list(groups).count("in") or len(groups)
    down = -(-len(groups) // across)
    with style():
        drawing, axes = panels(down, across, height=2.0, width=1.6 * across + 0.8)
        maps = axes.ravel()
        for index, group in enumerate(groups):
            shown = _map(maps[index], 255 * offsets, changes[index], reach)
            title = f"{side_name(group)}\n{sets[index]}\nscore {centres[index]:.4g}"
            maps[index].set_title(title, loc="left", fontsize=_SMALL)
        for unused in maps[len(groups) :]:
            unused.set_visible(False)
        drawing.colorbar(shown, ax=axes, label="change of the score", fraction=0.03, aspect=30)
        words = _landscape_words(subject, _largest(changes, groups))
        columns = ["subject", "image", "side", "set", "offset_u", "offset_v", "score"]
        rows = _landscape_rows(offsets.tolist(), scores, groups, sets, subject)
        return finish(drawing, name, words, columns, rows)


def _landscape_words(subject: str, largest: str) -> Words:
    return Words(
        title=f"Score landscape of {subject}",
        caption="Change of the score around single images over two random directions, the same "
        "in all panels, in 255ths of the pixel range (root mean square; PRO paper, Fig. 6). "
        "All panels have one colour scale: flat ones are scores that random perturbations "
        "hardly change.",
        alt=f"Heat maps of the change of the score of {subject}. {largest}",
    )


def _map(axes: Axes, offsets: NDArray[Any], change: NDArray[Any], reach: float) -> Any:
    """Draw the change `(P, P)` of one image's score and return what the colour bar describes."""
    low = offsets[0]
    high = offsets[-1]
    shown = axes.imshow(
        change,
        cmap=DIVERGING,
        vmin=-reach,
        vmax=reach,
        extent=(low, high, low, high),
        origin="lower",
        interpolation="none",
    )
    if np.ptp(change) > 0:
        axes.contour(
            offsets,
            offsets,
            change,
            levels=np.linspace(-reach, reach, _CONTOURS),
            colors=_LINE,
            linewidths=0.5,
            linestyles="solid",
        )
    axes.plot(0, 0, marker="x", color=_LINE, markersize=5)
    axes.set_xticks([low, 0, high])
    axes.set_yticks([low, 0, high])
    axes.xaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.label_outer()
    return shown


def _largest(changes: NDArray[Any], groups: Sequence[str]) -> str:
    """Say how far the score changes at most around inliers and around outliers."""
    inliers = 0.0
    outliers = 0.0
    for change, group in zip(changes, groups, strict=True):
        largest = float(np.abs(change).max())
        if group == "in":
            inliers = max(inliers, largest)
        else:
            outliers = max(outliers, largest)
    return f"Around inliers it is at most {inliers:.3g}, around outliers at most {outliers:.3g}."


def _landscape_rows(
    offsets: list[float],
    scores: NDArray[Any],
    groups: Sequence[str],
    sets: Sequence[str],
    subject: str,
) -> list[list[object]]:
    rows: list[list[object]] = []
    for index, group in enumerate(groups):
        for row, second in enumerate(offsets):
            for column, first in enumerate(offsets):
                score = float(scores[index, row, column])
                rows.append([subject, index, group, sets[index], first, second, score])
    return rows


def image_strips(
    images: AttackedImages,
    *,
    attack: str,
    subject: str,
    name: str,
    threshold: float | None = None,
) -> Figure:
    """Return images before and after an attack and what it added, with their scores.

    Args:
        images: the images and their scores.
        attack: its label.
        subject: network and detector.
        name: of the figure's files.
        threshold: the lowest score that is accepted as in-distribution, where it is known.
    """
    count = len(images.clean)
    # Signed, because bytes would wrap around.
    added = images.attacked.astype(int) - images.clean  # (N, H, W, C)
    factor = _factor(added)
    with style():
        drawing, axes = panels(3, count, height=1.35, width=max(3.6, 0.95 * count))
        for index in range(count):
            show_pixels(axes[2, index], _visible(added[index], factor))
            _show_pair(axes[:2, index], images, index, threshold)
        axes[0, 0].set_ylabel("clean", color=MUTED)
        axes[1, 0].set_ylabel("attacked", color=MUTED)
        axes[2, 0].set_ylabel(f"added \N{MULTIPLICATION SIGN} {factor}", color=MUTED)
        words = Words(
            title=f"Images under {attack}, scored by {subject}",
            caption=f"True scores before and after {attack}: inliers are pushed down, outliers up."
            f"{_rule(threshold)} The last row is what the attack added, magnified, around grey.",
            alt="Pairs of images before and after an attack. Scores: "
            f"{'; '.join(_score_changes(images))}.",
        )
        columns = ["subject", "attack", "image", "side", "set", "score_clean", "score_attacked"]
        return finish(drawing, name, words, columns, _strip_rows(images, subject, attack))


def _show_pair(
    axes: NDArray[Any], images: AttackedImages, index: int, threshold: float | None
) -> None:
    """Show an image before and after the attack, with its scores."""
    show_pixels(axes[0], images.clean[index])
    show_pixels(axes[1], images.attacked[index])
    before = verdict(images.before[index], threshold)
    after = verdict(images.after[index], threshold)
    axes[0].set_title(f"{side_name(images.groups[index])}\n{before}", fontsize=_SMALL)
    axes[1].set_title(after, fontsize=_SMALL)


def _rule(threshold: float | None) -> str:
    if threshold is None:
        return ""
    return " Accepted or rejected at the threshold that accepts 95 % of clean inliers."


def _score_changes(images: AttackedImages) -> list[str]:
    changes = []
    for index, group in enumerate(images.groups):
        before = f"{images.before[index]:.4g}"
        after = f"{images.after[index]:.4g}"
        changes.append(f"{images.sets[index]} ({side_name(group)}) {before} to {after}")
    return changes


def _strip_rows(images: AttackedImages, subject: str, attack: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for index, group in enumerate(images.groups):
        before = float(images.before[index])
        after = float(images.after[index])
        rows.append([subject, attack, index, group, images.sets[index], before, after])
    return rows


def _factor(added: NDArray[Any]) -> int:
    """Return by how much the added pixels can be multiplied within the range of a byte."""
    largest = int(np.abs(added).max()) or 1
    return max(1, 127 // largest)


def _visible(added: NDArray[Any], factor: int) -> NDArray[Any]:
    return np.asarray(np.clip(128 + added * factor, 0, 255), dtype=np.uint8)


def show_pixels(axes: Axes, pixels: NDArray[Any]) -> None:
    """Show an image `(H, W, C)` of bytes."""
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]  # (H, W): matplotlib's form of grey images
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)


def verdict(score: float, threshold: float | None) -> str:
    """Return a score, and below it what becomes of the image at the threshold."""
    if threshold is None:
        return f"{score:.4g}"
    return f"{score:.4g}\n{'accepted' if score >= threshold else 'rejected'}"


def side_name(group: str) -> str:
    """Return what a side is called."""
    return "inlier" if group == "in" else f"{group} OOD"
