"""Draw the front page's picture: AUROC of the zoo's networks, clean and attacked, from their cards.

python docs/figures/front.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ZOO = HERE.parents[1] / "robust_ood" / "zoo"
DIGITS = "digits-"

# What a method's training shows the network, from which what survives can be understood. A network
# of the digits that none of them names must be added here.
KINDS = {
    "trained with attacked or bounded outliers": "acet aloe atd atom good halo prood ratio",
    "trained with outliers, not attacked": "aoe ccu energy-margin gaussian-oe ntom oe",
    "trained without outliers": "adv gaussian safe-spot-fgsm standard",
}
COLOURS = ("#00796b", "#b26a00", "#c62828")
# Their images have 8 x 8 pixels, so that their numbers do not compare.
SMALL_IMAGES = "autoencoder confidence-gan flow jem"

# Narrow, with large letters, so that it can be read on a phone.
WIDTH = 600
MARGIN = 22
LEFT = 196  # x of AUROC 0
RIGHT = 440  # x of AUROC 1
ATTACKED = 512  # right end of the numbers under attack
CLEAN = 574
ROW = 23
TOP = 122  # y of the first section's title
GAP = 12  # between sections

INK = "#24292f"
GREY = "#6e7781"
PALE = "#d8dee4"


def read_cards() -> dict[str, dict[str, Any]]:
    """Return the cards of the zoo by the networks' names."""
    cards = {}
    for path in sorted(ZOO.glob("*/card.json")):
        cards[path.parent.name] = json.loads(path.read_text())
    return cards


def auroc(card: dict[str, Any], group: str, attacked: str) -> float:
    """Return an AUROC of a card, that of the network's own score."""
    for row in card["detection"]:
        if (row["group"], row["attacked"]) == (group, attacked):
            return float(row["auroc"])
    raise LookupError(f"{card['name']} has no AUROC of {group}, attacked: {attacked}")


class Line(NamedTuple):
    """A network against a group of sets: its AUROC, and whether a sanity check raised an alarm."""

    name: str
    attacked: float
    clean: float
    alarm: bool


def read_line(card: dict[str, Any], name: str, group: str) -> Line:
    """Return what a card says of a group of sets."""
    alarm = card["sanity"]["verdict"] != "no alarm"
    return Line(name, auroc(card, group, "both"), auroc(card, group, "none"), alarm)


def sections(cards: dict[str, Any]) -> list[tuple[str, str, list[Line]]]:
    """Return title, colour and lines of each section."""
    parts = []
    kind_of = dict.fromkeys(SMALL_IMAGES.split(), "")
    for kind, names in KINDS.items():
        kind_of.update(dict.fromkeys(names.split(), kind))
    for kind, colour in zip(KINDS, COLOURS, strict=True):
        lines = []
        for name, card in cards.items():
            short = name.removeprefix(DIGITS)
            if name.startswith(DIGITS) and kind_of[short] == kind:
                lines.append(read_line(card, short, "far"))
        parts.append((f"Digits, {kind}", colour, sorted(lines, key=lambda line: -line.attacked)))
    lines = []
    for name, card in cards.items():
        if not name.startswith(DIGITS):
            short = name.removeprefix("cifar10-")
            for group in ("far", "near"):
                lines.append(read_line(card, f"{short}, {group}", group))
    parts.append(("CIFAR-10, trained with attacked outliers", COLOURS[0], lines))
    return parts


def across(value: float) -> float:
    """Return the x of an AUROC."""
    return round(LEFT + value * (RIGHT - LEFT), 1)


def text(x: float, y: float, words: str, size: int = 16, colour: str = INK, rest: str = "") -> str:
    """Return words at a point."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{rest}>{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, rest: str = "") -> str:
    """Return a straight line."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{rest}/>'


def axis(top: float, bottom: float) -> list[str]:
    """Draw the scale, and the line of a detector that guesses."""
    shapes = []
    for tick in (0.0, 1.0):
        x = across(tick)
        shapes.append(line(x, top, x, bottom, PALE))
        shapes.append(text(x, bottom + 20, f"{tick:.0f}", 16, GREY, ' text-anchor="middle"'))
    chance = across(0.5)
    shapes.append(line(chance, top, chance, bottom, INK, ' stroke-dasharray="4 4"'))
    shapes.append(text(chance, bottom + 20, "0.5 = chance", 16, INK, ' text-anchor="middle"'))
    return shapes


def legend(y: float) -> list[str]:
    """Name the two kinds of points, and head the columns of numbers."""
    end = ' text-anchor="end"'
    return [
        f'<circle cx="{MARGIN + 8}" cy="{y - 5}" r="6" fill="{GREY}"/>',
        text(MARGIN + 22, y, "both sides attacked: 16/255, CIFAR-10 1/255"),
        f'<circle cx="{MARGIN + 8}" cy="{y + 18}" r="5" fill="#fff" stroke="{GREY}" '
        'stroke-width="2"/>',
        text(MARGIN + 22, y + 23, "clean images"),
        text(ATTACKED, y + 23, "attacked", 15, GREY, end),
        text(CLEAN, y + 23, "clean", 15, GREY, end),
    ]


def comparison(y: float, network: Line, colour: str) -> list[str]:
    """Draw one network: where it was, and where the attack takes it."""
    left = across(network.attacked)
    right = across(network.clean)
    end = ' text-anchor="end"'
    bold = f' font-weight="bold"{end}'
    shapes = [
        text(LEFT - 14, y + 5, network.name, 16, INK, end),
        line(left, y, right, y, colour, ' stroke-width="4" stroke-opacity="0.35"'),
        f'<circle cx="{right}" cy="{y}" r="5" fill="#fff" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{left}" cy="{y}" r="6" fill="{colour}"/>',
        text(ATTACKED, y + 5, f"{network.attacked:.2f}", 16, colour, bold),
        text(CLEAN, y + 5, f"{network.clean:.2f}", 16, GREY, end),
    ]
    if network.alarm:
        shapes.append(text(ATTACKED + 3, y + 5, "*", 16, colour))
    return shapes


def provenance(cards: dict[str, Any]) -> str:
    """Return what measured the numbers, where and when."""
    machines = sorted({card["machine"] for card in cards.values()})
    dates = sorted(card["evaluation"]["date"][:10] for card in cards.values())
    return (
        f"python docs/figures/front.py, from the zoo's cards; PGD, 20 steps, 2 restarts; evaluated "
        f"{dates[0]} to {dates[-1]}; trained on {' and '.join(machines)}"
    )


def picture(cards: dict[str, Any]) -> str:
    """Return the whole drawing."""
    shapes = []
    y = float(TOP)
    for title, colour, lines in sections(cards):
        rest = ' font-weight="bold" paint-order="stroke" stroke="#fff" stroke-width="6"'
        shapes.append(text(MARGIN, y + 5, title, 16, colour, rest))  # in front of the scale
        y += ROW
        for network in lines:
            shapes += comparison(y, network, colour)
            y += ROW
        y += GAP
    bottom = y - GAP - ROW / 2 + 4
    height = round(bottom + 82)
    middle = MARGIN + (CLEAN - MARGIN) / 2
    words = "AUROC through each network's own score; digits: 32 px, far sets"
    alarm = "* a sanity check raises an alarm: a better attack may leave less"
    title = "What an attack leaves of the networks that ship"
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
                f'width="{WIDTH}" role="img" font-family="Helvetica, Arial, sans-serif">',
                f"<title>{title}</title>",
                f"<desc>{provenance(cards)}</desc>",
                f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>',
                text(MARGIN, 38, title, 20, INK, ' font-weight="bold"'),
                *legend(68),
                *axis(TOP + 14, bottom),
                text(middle, bottom + 44, words, 15, GREY, ' text-anchor="middle"'),
                text(middle, bottom + 66, alarm, 15, GREY, ' text-anchor="middle"'),
                *shapes,
                "</svg>",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    (folder / "front.svg").write_text(picture(read_cards()))
