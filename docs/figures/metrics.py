"""Draw the pictures of docs/guides/metrics.md: two densities, a threshold, and a shaded share.

python docs/figures/metrics.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import NormalDist

ID = NormalDist(1.5, 1)
OOD = NormalDist(-1, 1.5)
ATTACKED = NormalDist(0, 1)

LOW = -6.0  # the lowest score
HIGH = 6.0
WIDTH = 640
HEIGHT = 240
BASE = 195  # y of the axis

GREEN = "#00796b"
RED = "#c62828"


def across(score: float) -> float:
    """Return the x of a score."""
    return round((score - LOW) / (HIGH - LOW) * WIDTH, 1)


def curve(normal: NormalDist, colour: str, dashed: bool = False) -> str:
    """Return a density as a line."""
    style = ' stroke-dasharray="6 4"' if dashed else ""
    corners = points(normal, LOW, HIGH)
    return f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"{style}/>'


def shade(normal: NormalDist, low: float, high: float, colour: str) -> str:
    """Return the area under a density between two scores."""
    corners = f"{across(low)},{BASE} {points(normal, low, high)} {across(high)},{BASE}"
    return f'<polygon points="{corners}" fill="{colour}" fill-opacity="0.3"/>'


def points(normal: NormalDist, low: float, high: float) -> str:
    """Return points of a density between two scores."""
    corners = []
    for step in range(101):
        score = low + (high - low) * step / 100
        height = round(BASE - 400 * normal.pdf(score), 1)
        corners.append(f"{across(score)},{height}")
    return " ".join(corners)


def text(x: float, y: float, words: str, colour: str = "#222", anchor: str = "middle") -> str:
    """Return words at a point."""
    return f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}">{words}</text>'


def picture(title: str, threshold: float, rule: str, shapes: list[str]) -> str:
    """Return a whole drawing with its axis and threshold."""
    x = across(threshold)
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif" font-size="13">',
        f"<title>{title}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *shapes,
        f'<line x1="0" y1="{BASE}" x2="{WIDTH}" y2="{BASE}" stroke="#222"/>',
        f'<line x1="{x}" y1="24" x2="{x}" y2="{BASE}" stroke="#222" stroke-dasharray="3 3"/>',
        text(x, 16, rule),
        text(WIDTH - 6, BASE + 18, "score: higher = more in-distribution", anchor="end"),
        text(x + 8, BASE + 36, "accepted &#8594;", anchor="start"),
        text(x - 8, BASE + 36, "&#8592; rejected", anchor="end"),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


def fpr95() -> str:
    """Draw FPR95 with ID positive."""
    threshold = ID.inv_cdf(0.05)
    share = 1 - OOD.cdf(threshold)
    shapes = [
        shade(OOD, threshold, HIGH, RED),
        curve(OOD, RED),
        curve(ID, GREEN),
        text(across(-2.4), 90, "OOD", RED),
        text(across(3.0), 60, "ID", GREEN),
        text(WIDTH - 6, 108, f"fpr95 = {share:.2f}", RED, "end"),
    ]
    return picture("FPR95, ID positive", threshold, "accepts 95 % of ID", shapes)


def fpr95_ood_positive() -> str:
    """Draw FPR95 with OOD positive."""
    threshold = OOD.inv_cdf(0.95)
    share = ID.cdf(threshold)
    shapes = [
        shade(ID, LOW, threshold, GREEN),
        curve(OOD, RED),
        curve(ID, GREEN),
        text(across(-2.4), 90, "OOD", RED),
        text(across(3.0), 60, "ID", GREEN),
        text(WIDTH - 6, 108, f"fpr95_ood_positive = {share:.2f}", GREEN, "end"),
    ]
    return picture("FPR95, OOD positive", threshold, "rejects 95 % of OOD", shapes)


def deployed() -> str:
    """Draw what an inlier attack does at a threshold fixed beforehand."""
    threshold = ID.inv_cdf(0.05)
    share = 1 - ATTACKED.cdf(threshold)
    shapes = [
        shade(ATTACKED, threshold, HIGH, GREEN),
        curve(OOD, RED),
        curve(ID, GREEN),
        curve(ATTACKED, GREEN, dashed=True),
        text(across(-3.2), 120, "OOD", RED),
        text(across(3.2), 60, "clean ID", GREEN),
        text(across(-1.2), 46, "attacked ID", GREEN),
        text(WIDTH - 6, 108, f"tpr_deployed = {share:.2f}", GREEN, "end"),
    ]
    return picture("Rates at the deployed threshold", threshold, "accepts 95 % of clean ID", shapes)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for draw in (fpr95, fpr95_ood_positive, deployed):
        (folder / f"{draw.__name__}.svg").write_text(draw())
