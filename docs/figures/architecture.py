"""Draw docs/figures/architecture.svg: how data flows, and who may import whom, the latter from
pyproject.toml.

python docs/figures/architecture.py [FOLDER]
"""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, LADDER = 1000, 700, 700  # the ladder of imports begins at x = 700
TRAINING, CORE, EVALUATION, FILES = "#dcebf7", "#fff3d6", "#e0f2e9", "#eeeeee"


class Box(NamedTuple):
    """A part of the drawing, with its centre."""

    x: float
    y: float
    width: float
    colour: str
    title: str
    note: str = ""

    def draw(self) -> str:
        """Return the box with its words."""
        height, middle = self.height, 5 if not self.note else -3
        left = self.x - self.width / 2
        top = self.y - height / 2
        shape = (
            f'<rect x="{left}" y="{top}" width="{self.width}" height="{height}" '
            f'rx="5" fill="{self.colour}" stroke="#555"/>'
        )
        words = text(self.x, self.y + middle, self.title, weight="bold")
        return shape + words + (text(self.x, self.y + 13, self.note, size=11) if self.note else "")

    @property
    def height(self) -> float:
        """Boxes with a note are higher."""
        return 44 if self.note else 26


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 13,
    weight: str = "normal",
    anchor: str = "middle",
) -> str:
    """Return words at a place."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="#222">{words}</text>'
    )


def arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    """Return an arrow along points."""
    style = ' stroke-dasharray="5 4"' if dashed else ""
    line = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline points="{line}" fill="none" stroke="#444" stroke-width="1.5"{style} '
        'marker-end="url(#tip)"/>'
    )


def row(y: float, colour: str, *names: tuple[str, str]) -> list[Box]:
    """Return boxes beside each other, over the width of the flow."""
    step = (LADDER - 40) / len(names)
    return [
        Box(20 + step * (place + 0.5), y, step - 18, colour, *name)
        for place, name in enumerate(names)
    ]


def between(boxes: list[Box]) -> list[str]:
    """Return arrows from each box of a row to the next."""
    return [
        arrow((a.x + a.width / 2, a.y), (b.x - b.width / 2 - 3, b.y)) for a, b in pairwise(boxes)
    ]


def down(upper: Box, lower: Box, dx: float = 0, label: str = "") -> list[str]:
    """Return an arrow from a box down to another, with words at its right."""
    x, top, end = upper.x + dx, upper.y + upper.height / 2, lower.y - lower.height / 2 - 3
    return [
        arrow((x, top), (x, end)),
        text(x + 6, (top + end) / 2 + 4, label, size=11, anchor="start"),
    ]


def up(lower: Box, upper: Box, dx: float = 0, label: str = "") -> list[str]:
    """Return an arrow from a box up to another, with words at its right."""
    x, start, end = lower.x + dx, lower.y - lower.height / 2, upper.y + upper.height / 2 + 3
    return [
        arrow((x, start), (x, end)),
        text(x + 6, (start + end) / 2 + 4, label, size=11, anchor="start"),
    ]


def flow() -> list[str]:
    """Return the left side: training above, evaluation below, the core that both call between
    them.
    """
    train = row(
        84, TRAINING,
        ("image sets", "data"), ("TrainingLoader", "data: batches by key"),
        ("Method.attacked", "training"),
        ("Method.loss", "one forward pass"), ("last.ckpt", "callbacks"),
    )  # fmt: skip
    train[0], train[4] = train[0]._replace(colour=FILES), train[4]._replace(colour=FILES)
    test = row(
        500, EVALUATION,
        ("image sets", "data"), ("tasks", "cells not in the store"), ("attack_score", "attacks"),
        ("store/", "one file a cell"), ("rows", "metrics, sanity"),
    )  # fmt: skip
    test[0], test[3] = test[0]._replace(colour=FILES), test[3]._replace(colour=FILES)
    results = Box(test[4].x, 610, test[4].width, FILES, "results.json", "report.html: reporting")
    engine = Box(train[2].x, 225, 190, CORE, "minimize", "the engine: every gradient step")
    leaves = Box(140, 225, 200, CORE, "rules, regions, randomness", "step, set, draws")
    detector = Box(train[2].x, 365, 190, CORE, "detector", "images to scores (N,)")
    network = Box(train[4].x, 365, 118, CORE, "network", "images to logits")
    boxes = [*train, *test, results, engine, leaves, detector, network]
    lines = [
        *between(train), *between(test), *down(test[4], results),
        *down(train[2], engine, -30), *up(engine, train[2], 30, "attacked images"),
        text(train[2].x - 36, 158, "goal, images", size=11, anchor="end"),
        arrow((leaves.x + 100, 225), (engine.x - 98, 225)),
        *up(detector, engine, -30), *down(engine, detector, 30, "candidates"),
        text(train[2].x - 36, 299, "its attack surface", size=11, anchor="end"),
        *up(test[2], detector, 30, "images, settings"), *down(detector, test[2], -30),
        text(train[2].x - 36, 434, "the candidate of the worst true score", size=11, anchor="end"),
        arrow((network.x - 59, 365), (detector.x + 98, 365)),
        text(502, 357, "one shared pass", size=11),
        *down(train[4], network, 0, "weights only"),
        text(20, 40, "Training", size=15, weight="bold", anchor="start"),
        text(20, 456, "Evaluation", size=15, weight="bold", anchor="start"),
    ]  # fmt: skip
    return [*lines, *(box.draw() for box in boxes)]


def layers() -> list[list[str]]:
    """Return the layers of pyproject.toml, the highest first, each with its modules."""
    listed = re.search(
        r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    assert listed is not None
    return [re.findall(r"robust_ood\.(\w+)", line) for line in listed[1].splitlines()]


def ladder() -> list[str]:
    """Return the right side: a layer may import those below it."""
    parts = [
        text(
            LADDER + 20,
            40,
            "Imports point downwards",
            size=15,
            weight="bold",
            anchor="start",
        )
    ]
    colours = {"training": TRAINING, "perturb": CORE, "detectors": CORE, "models": CORE}
    top, above = 66.0, None
    for modules in layers():
        words = ", ".join(modules[:3]), ", ".join(modules[3:])
        box = Box(
            (LADDER + WIDTH) / 2, 0, WIDTH - LADDER - 40, colours.get(modules[0], "#fff"), *words
        )
        box = box._replace(y=top + box.height / 2)
        parts += [box.draw(), *([] if above is None else down(above, box))]
        top, above = top + box.height + 17, box
    return parts


def architecture() -> str:
    """Draw both sides."""
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="sans-serif">',
        "<title>How data flows, and who may import whom</title>",
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto">'
        '<path d="M0,0 L10,5 L0,10 z" fill="#444"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>',
        *flow(),
        f'<line x1="{LADDER}" y1="24" x2="{LADDER}" y2="{HEIGHT - 24}" stroke="#bbb"/>',
        *ladder(),
        "</svg>",
    ]
    return "\n".join(body) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    (folder / "architecture.svg").write_text(architecture())
