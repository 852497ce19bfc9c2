"""Figures around single images: the score's landscape, and what an attack did to image and
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from robust_ood.reporting.figures.canvas import (
    DIVERGING,
    MUTED,
    RULE,
    Figure,
    finish,
    panels,
    style,
)

_LINE = "#20242f"  # on the map, which is light in either theme


def landscapes(
    offsets: NDArray[Any],
    scores: NDArray[Any],
    groups: Sequence[str],
    sets: Sequence[str],
    subject: str,
    name: str,
) -> Figure:
    """Return the change of a score over two random directions around images (PRO paper, Fig. 6).

    Args:
        offsets: `(P,)` root mean square changes of the pixels along either direction, increasing, 0
            in the middle.
        scores: `(N, P, P)`, the first direction along the last axis.
        groups: by image, "in", "near" or "far".
        sets: by image, the name of its set.
        subject: network and detector.
        name: of the figure's files.
    """
    middle = len(offsets) // 2
    centres = scores[:, middle, middle]
    change = scores - centres[:, None, None]
    reach = float(np.abs(change).max()) or 1.0
    inside = [float(np.abs(change[i]).max()) for i, group in enumerate(groups) if group == "in"]
    outside = [float(np.abs(change[i]).max()) for i, group in enumerate(groups) if group != "in"]
    extent = (255 * offsets[0], 255 * offsets[-1], 255 * offsets[0], 255 * offsets[-1])
    wide = sum(group == "in" for group in groups)
    with style():
        drawing, axes = panels(-(-len(groups) // wide), wide, height=2.0, width=1.6 * wide + 0.8)
        for index, one in enumerate(axes.ravel()):
            if index >= len(groups):
                one.set_visible(False)
                continue
            shown = one.imshow(change[index], cmap=DIVERGING, vmin=-reach, vmax=reach, extent=extent, origin="lower",
                               interpolation="none")  # fmt: skip
            if np.ptp(change[index]) > 0:
                one.contour(255 * offsets, 255 * offsets, change[index], levels=np.linspace(-reach, reach, 14),
                            colors=_LINE, linewidths=0.5, linestyles="solid")  # fmt: skip
            one.plot(0, 0, marker="x", color=_LINE, markersize=5)
            one.set_title(
                f"{_side(groups[index])}\n{sets[index]}\nscore {centres[index]:.4g}",
                loc="left",
                fontsize=7.5,
            )
            one.set_xticks([extent[0], 0, extent[1]])
            one.set_yticks([extent[0], 0, extent[1]])
            one.xaxis.set_major_formatter("{x:.3g}")
            one.yaxis.set_major_formatter("{x:.3g}")
            one.label_outer()
        drawing.colorbar(shown, ax=axes, label="change of the score", fraction=0.03, aspect=30)
        steps = offsets.tolist()
        rows = [
            [subject, index, groups[index], sets[index], a, b, float(scores[index, row, column])]
            for index in range(len(groups))
            for row, b in enumerate(steps)
            for column, a in enumerate(steps)
        ]
        return finish(
            drawing,
            name,
            title=f"Score landscape of {subject}",
            caption="Change of the score around single images over two random directions, the same in all panels, in "
            "255ths of the pixel range (root mean square; PRO paper, Fig. 6). One colour scale for all: flat panels "
            "are scores that random perturbations hardly move.",
            alt=f"Heat maps of the change of the score of {subject}. Around inliers it reaches at most "
            f"{max(inside, default=0):.3g}, around outliers {max(outside, default=0):.3g}.",
            columns=["subject", "image", "side", "set", "offset_u", "offset_v", "score"],
            rows=rows,
        )


def image_strips(
    clean: NDArray[Any],
    attacked: NDArray[Any],
    before: NDArray[Any],
    after: NDArray[Any],
    groups: Sequence[str],
    sets: Sequence[str],
    *,
    attack: str,
    subject: str,
    name: str,
    threshold: float | None = None,
) -> Figure:
    """Return images before and after an attack and what it added, with their scores.

    Args:
        clean, attacked: `(N, H, W, C)` uint8.
        before, after: true scores `(N,)`.
        groups, sets: by image, "in", "near" or "far", and the name of its set.
        attack: its label.
        subject: network and detector.
        name: of the figure's files.
        threshold: the score from which on images are accepted as in-distribution, where it is
            known.
    """
    added = attacked.astype(int) - clean
    largest = int(np.abs(added).max()) or 1
    with style():
        drawing, axes = panels(3, len(clean), height=1.25, width=max(3.6, 0.95 * len(clean)))
        for index in range(len(clean)):
            for row, pixels in enumerate(
                (clean[index], attacked[index], _visible(added[index], largest))
            ):
                _show(axes[row, index], pixels)
            axes[0, index].set_title(
                f"{_side(groups[index])}\n{_verdict(before[index], threshold)}", fontsize=7.5
            )
            axes[1, index].set_title(_verdict(after[index], threshold), fontsize=7.5)
        for row, words in enumerate(
            ("clean", "attacked", f"added \N{MULTIPLICATION SIGN} {_factor(largest)}")
        ):
            axes[row, 0].set_ylabel(words, color=MUTED)
        changed = [
            f"{s} ({_side(g)}) {b:.4g} to {a:.4g}"
            for s, g, b, a in zip(sets, groups, before, after, strict=True)
        ]
        rule = "" if threshold is None else (
            " + accepted, \N{MINUS SIGN} rejected at the threshold that accepts 95 % of clean inliers."
        )  # fmt: skip
        return finish(
            drawing,
            name,
            title=f"Images under {attack}, scored by {subject}",
            caption=f"True scores before and after {attack}: inliers are pushed down, outliers up.{rule} The last row "
            "is what the attack added, magnified, around grey.",
            alt=f"Pairs of images before and after an attack. Scores: {'; '.join(changed)}.",
            columns=["subject", "attack", "image", "side", "set", "score_clean", "score_attacked"],
            rows=[
                [
                    subject,
                    attack,
                    index,
                    groups[index],
                    sets[index],
                    float(before[index]),
                    float(after[index]),
                ]
                for index in range(len(clean))
            ],
        )


def _factor(largest: int) -> int:
    return max(1, 127 // largest)


def _visible(added: NDArray[Any], largest: int) -> NDArray[Any]:
    return np.asarray(np.clip(128 + added * _factor(largest), 0, 255), dtype=np.uint8)


def _show(axes: Axes, pixels: NDArray[Any]) -> None:
    axes.imshow(
        pixels[..., 0] if pixels.shape[-1] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="none",
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RULE)


def _verdict(score: float, threshold: float | None) -> str:
    mark = "" if threshold is None else "+ " if score >= threshold else "\N{MINUS SIGN} "
    return f"{mark}{score:.4g}"


def _side(group: str) -> str:
    return "inlier" if group == "in" else f"{group} OOD"
