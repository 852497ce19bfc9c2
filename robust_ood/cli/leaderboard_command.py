"""`robust-ood leaderboard`: rows of sealed folders of results, re-checked and ranked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.report_command import check_folders
from robust_ood.errors import UserError
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.models.zoo import pretrained, zoo_names
from robust_ood.reporting import check_installed
from robust_ood.reporting.leaderboard import seal, standings
from robust_ood.texts import printable


def parser() -> CommandParser:
    """Return the parser of the leaderboard command."""
    parser = CommandParser(
        prog="robust-ood leaderboard",
        description="Rank networks and detectors by what survives each threat, from folders of "
        "results whose sums, scores and weights are checked again (docs/leaderboard.md).",
    )
    parser.add_argument(
        "results", type=Path, nargs="*", help="folders with results.json, store/ and hashes.json"
    )
    parser.add_argument(
        "--seal",
        type=bool,
        default=False,
        help="first write hashes.json into each folder: what one does before sending a row",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("leaderboard"),
        help="folder of leaderboard.html, leaderboard.md and leaderboard.json",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Write a leaderboard and return the exit code."""
    config = parse_arguments(parser(), arguments)
    check_folders(config.results, {})
    if config.output.exists() and not config.output.is_dir():
        raise UserError(f"output: {config.output} is a file; expected a folder")
    check_writable(config.output)
    check_installed()
    from robust_ood.reporting.leaderboard_page import write  # needs Jinja2

    if config.seal:
        for folder in config.results:
            print(printable(f"wrote {seal(folder)}"))
    weights = {}
    for name in zoo_names():
        weights[name] = fingerprint(dict(pretrained(name).state_dict()))
    rows = standings(config.results, weights)
    for path in write(rows, config.output):
        print(printable(f"wrote {path}"))
    return 0
