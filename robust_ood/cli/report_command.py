"""`robust-ood report`: one page over one or several folders of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.output import check_file
from robust_ood.cli.parsing import CommandParser
from robust_ood.errors import UserError
from robust_ood.reporting import write_report
from robust_ood.texts import printable


def parser() -> CommandParser:
    """Return the parser of the report command."""
    parser = CommandParser(
        prog="robust-ood report",
        description="Write an HTML page, figures and their data from folders of results.",
    )
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        help="folders with a results.json; the page shows their models side by side",
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help="the page (default: report.html in the first folder)",
    )
    parser.add_argument(
        "--tensorboard",
        type=bool,
        default=False,
        help="also write tables and figures for TensorBoard, beside the page",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Write a report and return the exit code."""
    config = parse_arguments(parser(), arguments)
    for folder in config.results:
        if not folder.is_dir():
            raise UserError(f"results: {folder} is no folder; expected folders with a results.json")
    output = config.output or config.results[0] / "report.html"
    check_file(output)
    page = write_report(config.results, output, tensorboard=config.tensorboard)
    print(printable(f"wrote {page}"))
    return 0
