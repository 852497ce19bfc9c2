"""Draw the front page's picture: AUROC of two networks, clean and attacked, from one quickstart.

python docs/figures/front.py [FOLDER]                  # draw from quickstart.json
python docs/figures/front.py --results runs/quickstart # first take the numbers of another run
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NUMBERS = HERE / "quickstart.json"

THREADS = 1  # of the run whose numbers are kept: OMP_NUM_THREADS=1

WIDTH = 800
HEIGHT = 372
LEFT = 284  # x of the lowest AUROC
RIGHT = 726  # x of AUROC 1
LOWEST = 0.3
ROW = 34
TOP = 100  # y of the first row
GAP = 22  # between the two networks

INK = "#24292f"
GREY = "#6e7781"
PALE = "#d8dee4"
COLOURS = {"OE": "#c62828", "ALOE": "#00796b"}
SUBTITLES = {"OE": "trained on clean images", "ALOE": "trained under attack"}
DETECTORS = {"msp": "MSP", "odin": "ODIN", "pro-msp": "PRO"}


def extract(results: dict[str, Any]) -> dict[str, Any]:
    """Return the rows that the front page shows, with the run they are from."""
    rows = []
    for row in results["rows"]:
        if row["ood"] == "flower-patches":
            shown = ("model", "detector", "attack", "attacked", "n_id", "n_ood", "auroc", "fpr95")
            rows.append({name: row[name] for name in shown})
    environment = results["environment"]
    provenance = {
        "command": "make quickstart",
        "date": environment["date"][:10],
        "machine": f"{environment['machine']}, {THREADS} thread",
        "torch": environment["versions"]["torch"],
    }
    return {"provenance": provenance, "rows": rows}


def auroc(numbers: dict[str, Any], model: str, detector: str, attacked: str) -> float:
    """Return one number of the run."""
    for row in numbers["rows"]:
        if (row["model"], row["detector"], row["attacked"]) == (model, detector, attacked):
            return float(row["auroc"])
    raise LookupError(f"no row of {model}, {detector}, attacked: {attacked}")


def across(value: float) -> float:
    """Return the x of an AUROC."""
    share = (value - LOWEST) / (1 - LOWEST)
    return round(LEFT + share * (RIGHT - LEFT), 1)


def text(x: float, y: float, words: str, size: int = 15, colour: str = INK, rest: str = "") -> str:
    """Return words at a point."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{rest}>{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, rest: str = "") -> str:
    """Return a straight line."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{rest}/>'


def axis(top: float, bottom: float) -> list[str]:
    """Draw the scale, and the line of a detector that guesses."""
    shapes = []
    for tick in (0.4, 0.6, 0.7, 0.8, 0.9, 1.0):
        x = across(tick)
        shapes.append(line(x, top, x, bottom, PALE))
        shapes.append(text(x, bottom + 20, f"{tick:.1f}", 13, GREY, ' text-anchor="middle"'))
    chance = across(0.5)
    shapes.append(line(chance, top, chance, bottom, INK, ' stroke-dasharray="4 4"'))
    shapes.append(text(chance, bottom + 20, "0.5 = chance", 13, INK, ' text-anchor="middle"'))
    middle = (LEFT + RIGHT) / 2
    words = "AUROC, digits against patches of a photograph"
    shapes.append(text(middle, bottom + 42, words, 13, GREY, ' text-anchor="middle"'))
    return shapes


def legend(y: float) -> list[str]:
    """Name the two kinds of points."""
    return [
        f'<circle cx="{LEFT + 8}" cy="{y - 5}" r="7" fill="#fff" stroke="{GREY}" '
        'stroke-width="2.5"/>',
        text(LEFT + 22, y, "clean images", 14),
        f'<circle cx="{LEFT + 148}" cy="{y - 5}" r="8" fill="{GREY}"/>',
        text(LEFT + 162, y, "inliers and outliers attacked, 16/255", 14),
    ]


def comparison(y: float, name: str, clean: float, attacked: float, colour: str) -> list[str]:
    """Draw one detector: where it was, and where the attack takes it."""
    left = across(attacked)
    right = across(clean)
    bold = ' font-weight="bold" text-anchor="end"'
    return [
        text(LEFT - 18, y + 5, name, 15, INK, ' text-anchor="end"'),
        line(left, y, right, y, colour, ' stroke-width="4" stroke-opacity="0.35"'),
        f'<circle cx="{right}" cy="{y}" r="7" fill="#fff" stroke="{colour}" stroke-width="2.5"/>',
        f'<circle cx="{left}" cy="{y}" r="8" fill="{colour}"/>',
        text(left - 14, y + 5, f"{attacked:.2f}", 15, colour, bold),
        text(RIGHT + 16, y + 5, f"{clean:.2f}", 15, GREY),
    ]


def picture(numbers: dict[str, Any]) -> str:
    """Return the whole drawing."""
    bottom = TOP + 6 * ROW + GAP - 12
    shapes = axis(TOP - 22, bottom)
    y = float(TOP)
    for model, colour in COLOURS.items():
        shapes.append(text(28, y + 5, model, 20, colour, ' font-weight="bold"'))
        shapes.append(text(28, y + 26, SUBTITLES[model], 14, GREY))
        for detector, name in DETECTORS.items():
            clean = auroc(numbers, model, detector, "none")
            attacked = auroc(numbers, model, detector, "both")
            shapes += comparison(y, name, clean, attacked, colour)
            y += ROW
        y += GAP
    title = "One attack, two networks, three detectors"
    provenance = numbers["provenance"]
    source = "{command}, {date}, {machine}, torch {torch}".format(**provenance)
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
                f'width="{WIDTH}" role="img" font-family="Helvetica, Arial, sans-serif">',
                f"<title>{title}</title>",
                f"<desc>{source}</desc>",
                f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#fff"/>',
                text(28, 34, title, 18, INK, ' font-weight="bold"'),
                *legend(64),
                *shapes,
                "</svg>",
            ]
        )
        + "\n"
    )


def main(arguments: list[str]) -> None:
    """Take a run's numbers if asked to, and draw."""
    folder = HERE
    if arguments[:1] == ["--results"]:
        results = json.loads((Path(arguments[1]) / "results.json").read_text())
        NUMBERS.write_text(json.dumps(extract(results), indent=1) + "\n")
    elif arguments:
        folder = Path(arguments[0])
    numbers = json.loads(NUMBERS.read_text())
    (folder / "front.svg").write_text(picture(numbers))


if __name__ == "__main__":
    main(sys.argv[1:])
