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

# Narrow, with large letters, so that it can be read on a phone.
WIDTH = 600
HEIGHT = 444
MARGIN = 22
LEFT = 84  # x of AUROC 0
RIGHT = 518  # x of AUROC 1
ROW = 36
TOP = 112  # y of the first network's name
GAP = 14  # between the two networks

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
    return round(LEFT + value * (RIGHT - LEFT), 1)


def text(x: float, y: float, words: str, size: int = 18, colour: str = INK, rest: str = "") -> str:
    """Return words at a point."""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{rest}>{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str, rest: str = "") -> str:
    """Return a straight line."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{rest}/>'


def axis(top: float, bottom: float) -> list[str]:
    """Draw the scale, and the line of a detector that guesses."""
    shapes = []
    for tick in (0.0, 0.2, 0.8, 1.0):
        x = across(tick)
        shapes.append(line(x, top, x, bottom, PALE))
        shapes.append(text(x, bottom + 20, f"{tick:.1f}", 16, GREY, ' text-anchor="middle"'))
    chance = across(0.5)
    shapes.append(line(chance, top, chance, bottom, INK, ' stroke-dasharray="4 4"'))
    shapes.append(text(chance, bottom + 20, "0.5 = chance", 16, INK, ' text-anchor="middle"'))
    middle = (LEFT + RIGHT) / 2
    words = "AUROC, digits against patches of a photograph"
    shapes.append(text(middle, bottom + 44, words, 16, GREY, ' text-anchor="middle"'))
    return shapes


def legend(y: float) -> list[str]:
    """Name the two kinds of points."""
    return [
        f'<circle cx="{MARGIN + 8}" cy="{y - 5}" r="7" fill="#fff" stroke="{GREY}" '
        'stroke-width="2.5"/>',
        text(MARGIN + 24, y, "clean images", 17),
        f'<circle cx="{MARGIN + 170}" cy="{y - 5}" r="8" fill="{GREY}"/>',
        text(MARGIN + 186, y, "inliers and outliers attacked, 16/255", 17),
    ]


def comparison(y: float, name: str, clean: float, attacked: float, colour: str) -> list[str]:
    """Draw one detector: where it was, and where the attack takes it."""
    left = across(attacked)
    right = across(clean)
    bold = ' font-weight="bold" text-anchor="end"'
    return [
        text(LEFT - 12, y + 6, name, 18, INK, ' text-anchor="end"'),
        line(left, y, right, y, colour, ' stroke-width="4" stroke-opacity="0.35"'),
        f'<circle cx="{right}" cy="{y}" r="7" fill="#fff" stroke="{colour}" stroke-width="2.5"/>',
        f'<circle cx="{left}" cy="{y}" r="8" fill="{colour}"/>',
        text(left - 14, y + 6, f"{attacked:.2f}", 18, colour, bold),
        text(RIGHT + 18, y + 6, f"{clean:.2f}", 18, GREY),
    ]


def picture(numbers: dict[str, Any]) -> str:
    """Return the whole drawing."""
    bottom = TOP + 8 * ROW + GAP - 22
    shapes = axis(TOP + 16, bottom)
    y = float(TOP)
    for model, colour in COLOURS.items():
        subtitle = f'<tspan font-weight="normal" fill="{GREY}">, {SUBTITLES[model]}</tspan>'
        shapes.append(text(MARGIN, y + 6, model + subtitle, 18, colour, ' font-weight="bold"'))
        y += ROW
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
                text(MARGIN, 38, title, 20, INK, ' font-weight="bold"'),
                *legend(74),
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
