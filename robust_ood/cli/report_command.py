"""`robust-ood report`: one page, or tables for a paper, over one or several folders of results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.output import check_file, check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.errors import UserError
from robust_ood.reporting import write_report, write_tables, write_training_report
from robust_ood.reporting.recipes import choose_folders, parse_recipes
from robust_ood.reporting.training_run import is_run
from robust_ood.texts import printable

RECIPES_HELP = (
    "networks that differ by their seed, as NAME=FOLDERS, such as 'aloe=results/aloe-*': their "
    "mean and deviation come first"
)


def parser() -> CommandParser:
    """Return the parser of the report command."""
    parser = CommandParser(
        prog="robust-ood report",
        description="Write an HTML page, figures and their data from folders of results; or, with "
        "--format, its tables for a paper; from the folder of a training run, its curves.",
    )
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        help="folders with a results.json, whose models the page shows side by side; or the folder "
        "of a training run",
    )
    parser.add_argument("--recipes", type=str, nargs="+", default=[], help=RECIPES_HELP)
    parser.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help="the page (default: report.html in the first folder); of tables, the folder (default: "
        "tables in the first folder)",
    )
    parser.add_argument(
        "--format",
        type=Literal["html", "latex", "markdown", "csv"],
        default="html",
        help="html: the page; latex (booktabs), markdown or csv: a file for each table instead",
    )
    parser.add_argument(
        "--figure_format",
        type=Literal["png", "svg", "pdf"] | None,
        default=None,
        help="each figure in this format, too; beside the page, they are PNG in any case",
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
    config = parse_arguments(parser(), _with_underscore(arguments))
    recipes = parse_recipes(config.recipes)
    check_folders(config.results, recipes)
    runs = [folder for folder in config.results if is_run(folder)]
    if runs:
        return _write_run(config, runs[0])
    chosen = choose_folders(config.results, recipes)
    for folder in chosen.left_out:
        print(printable(f"left out: {folder} has no results.json"), file=sys.stderr)
    if config.format == "html":
        _write_page(config, recipes, chosen.folders[0])
    else:
        _write_tables(config, recipes, chosen.folders[0])
    return 0


def _write_run(config: Any, run: Path) -> int:
    """Write the report of a training run."""
    if len(config.results) > 1 or config.recipes:
        raise UserError(
            f"results: {run} is a training run, which has a report of its own; give it alone, or "
            "folders with a results.json"
        )
    if config.format != "html" or config.figure_format not in (None, "png"):
        raise UserError(f"format: {run} is a training run; its report is a page with PNG figures")
    output = config.output or run / "report.html"
    check_file(output)
    print(printable(f"wrote {write_training_report(run, output)}"))
    if config.tensorboard:
        print(
            printable(f"TensorBoard's curves are in the run's folder: tensorboard --logdir {run}")
        )
    return 0


def check_folders(folders: Sequence[Path], recipes: dict[str, list[str]]) -> None:
    """Raise `UserError` without folders, and for one that is none."""
    if not folders and not recipes:
        raise UserError("results: none given; expected folders with a results.json, or --recipes")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"results: {folder} is no folder; expected folders with a results.json")


def _with_underscore(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `--figure-format` as the other options are written."""
    return [
        argument.replace("--figure-format", "--figure_format", 1)
        if argument.startswith("--figure-format")
        else argument
        for argument in arguments
    ]


def _write_page(config: Any, recipes: dict[str, list[str]], first: Path) -> None:
    output = config.output or first / "report.html"
    check_file(output)
    page = write_report(
        config.results,
        output,
        tensorboard=config.tensorboard,
        recipes=recipes,
        figure_format=config.figure_format or "png",
    )
    print(printable(f"wrote {page}"))


def _write_tables(config: Any, recipes: dict[str, list[str]], first: Path) -> None:
    if config.tensorboard:
        raise UserError(f"tensorboard: true needs --format html, got {config.format}")
    output = config.output or first / "tables"
    check_writable(output)
    paths = write_tables(
        config.results,
        output,
        table_format=config.format,
        recipes=recipes,
        figure_format=config.figure_format,
    )
    print(printable(f"wrote {len(paths)} files into {output}"))
