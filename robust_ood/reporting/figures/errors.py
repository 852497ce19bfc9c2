"""The images that a detector gets most wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from robust_ood.reporting.figures.canvas import Figure, Words, finish, panels, style
from robust_ood.reporting.figures.images import show_pixels, side_name, verdict

_SMALL = 7.5  # font size of the titles of single images


def mistakes(
    pixels: NDArray[Any],
    scores: NDArray[Any],
    groups: Sequence[str],
    sets: Sequence[str],
    *,
    subject: str,
    name: str,
    threshold: float | None = None,
) -> Figure:
    """Return inliers with the lowest scores above outliers with the highest ones.

    Args:
        pixels: `(N, H, W, C)` uint8.
        scores: `(N,)`, of the clean images.
        groups: of each image, "in", "near" or "far".
        sets: of each image, the name of its set.
        subject: network and detector.
        name: of the figure's files.
        threshold: the lowest score that is accepted, where it is known.
    """
    rows = {"rejected": [], "accepted": []}  # type: dict[str, list[int]]
    for index, group in enumerate(groups):
        rows["rejected" if group == "in" else "accepted"].append(index)
    lines = [line for line in rows.values() if line]
    across = max(map(len, lines))
    with style():
        drawing, axes = panels(len(lines), across, height=1.6, width=max(3.6, 0.95 * across))
        for row, line in enumerate(lines):
            for column in range(across):
                panel = axes[row, column]
                if column >= len(line):
                    panel.set_visible(False)
                    continue
                index = line[column]
                show_pixels(panel, pixels[index])
                title = f"{sets[index]}\n{side_name(groups[index])}"
                panel.set_title(f"{title}\n{verdict(scores[index], threshold)}", fontsize=_SMALL)
        words = _words(subject, scores, groups, sets)
        columns = ["subject", "image", "side", "set", "score"]
        data: list[list[object]] = []
        for index, group in enumerate(groups):
            data.append([subject, index, group, sets[index], float(scores[index])])
        return finish(drawing, name, words, columns, data)


def _words(subject: str, scores: NDArray[Any], groups: Sequence[str], sets: Sequence[str]) -> Words:
    clauses = []
    for index, group in enumerate(groups):
        clauses.append(f"{sets[index]} ({side_name(group)}) {scores[index]:.4g}")
    return Words(
        title=f"Worst mistakes of {subject}",
        caption="Clean images that the score misplaces most, of the few that pictures are made of. "
        "First row: inliers with the lowest scores, the next to be rejected wrongly. Second row: "
        "OOD images with the highest scores, accepted wrongly from the threshold on.",
        alt=f"Images with their scores: {'; '.join(clauses)}.",
    )
