"""`robust-ood predict`: a guard's decisions on image files."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.evaluate_checks import choose_device
from robust_ood.cli.output import check_file
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.quiet import quiet
from robust_ood.deployment import Guard, load_guard, predict_files
from robust_ood.deployment.predict import FIELDS, find_images, time_guard
from robust_ood.errors import UserError
from robust_ood.names import spreadsheet_cell
from robust_ood.texts import printable
from robust_ood.writing import in_place_of

REJECTED = 1
"""The exit code of --fail-on-reject."""


def parser() -> CommandParser:
    """Return the parser of the predict command."""
    parser = CommandParser(
        prog="robust-ood predict", description="Classify images, or reject them as foreign."
    )
    add = parser.add_argument
    add("guard", type=Path, help="folder that robust-ood calibrate wrote")
    add("images", type=Path, nargs="*", help="image files, and folders of them")
    add("--csv", type=Path | None, default=None, help="also write a CSV file")
    add("--json", action="store_true", help="print JSON lines, for programs and for watch")
    add("--fail-on-reject", action="store_true", help="exit with 1 unless all are accepted")
    add("--benchmark", action="store_true", help="print what an image costs")
    add("--batch_size", type=int, default=64, help="images scored at a time")
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Decide on images and return the exit code."""
    quiet()
    config = parse_arguments(parser(), arguments)
    if config.csv is not None:
        check_file(config.csv, "csv")
    if config.batch_size < 1:
        raise UserError(f"batch_size: expected a number of images >= 1, got {config.batch_size}")
    if not config.images and not config.benchmark:
        raise UserError("images: none given; expected image files or folders")
    guard = load_guard(config.guard).to(choose_device(config.device))
    if config.benchmark:
        print(time_guard(guard), file=sys.stderr if config.json else sys.stdout)
    if not config.images:
        return 0
    counts = _decide(guard, config)
    print(_summary(counts), file=sys.stderr)
    if counts["unreadable"] == sum(counts.values()):
        raise UserError("images: none of them can be read")
    if config.fail_on_reject and counts["accepted"] < sum(counts.values()):
        return REJECTED
    return 0


def _decide(guard: Guard, config: Any) -> dict[str, int]:
    """Print and write each record, and return how many images met which fate."""
    counts = {"accepted": 0, "rejected": 0, "unreadable": 0}
    files = find_images(config.images)
    console = Console(stderr=True)
    with ExitStack() as stack:
        rows = None
        if config.csv is not None:
            config.csv.parent.mkdir(parents=True, exist_ok=True)
            partial = stack.enter_context(in_place_of(config.csv))
            file = stack.enter_context(partial.open("w", newline="", encoding="utf-8"))
            rows = csv.DictWriter(file, FIELDS)
            rows.writeheader()
        bar = stack.enter_context(
            Progress(console=console, transient=True, disable=not console.is_terminal)
        )
        task = bar.add_task("images", total=len(files))
        for record in _records(guard, files, config.batch_size):
            counts[_fate(record)] += 1
            if "error" in record:
                message = f"warning: cannot read {record['image']}: {record['error']}"
                print(message, file=sys.stderr)
            print(json.dumps(record) if config.json else _line(record))
            if rows is not None:
                cells = {name: spreadsheet_cell(value) for name, value in record.items()}
                rows.writerow(cells)
            bar.advance(task)
    return counts


def _records(guard: Guard, files: Sequence[Path], batch_size: int) -> Iterable[dict[str, Any]]:
    return predict_files(guard, files, batch_size)


def _fate(record: Mapping[str, Any]) -> str:
    if "error" in record:
        return "unreadable"
    return "accepted" if record["accepted"] else "rejected"


def _line(record: Mapping[str, Any]) -> str:
    """Return a record for people."""
    image = record["image"]
    if "error" in record:
        return f"unreadable  {image}: {record['error']}"
    return (
        f"{_fate(record):10}  {image}: {printable(str(record['class']))} "
        f"({100 * record['confidence']:.1f} %), score {record['score']:.4g}, "
        f"{record['distance']:+.4g} from the threshold"
    )


def _summary(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    parts = [f"{number} {fate}" for fate, number in counts.items()]
    return f"{total} images: {', '.join(parts)}"
