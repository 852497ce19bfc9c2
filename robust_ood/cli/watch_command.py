"""`robust-ood watch`: whether a log's scores are still those of calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.output import check_file
from robust_ood.cli.parsing import CommandParser
from robust_ood.deployment import load_guard, watch
from robust_ood.deployment.drift import LEAST, draw, read_log
from robust_ood.errors import UserError

DRIFTED = 1
"""The exit code of --fail-on-drift."""


def parser() -> CommandParser:
    """Return the parser of the watch command."""
    parser = CommandParser(
        prog="robust-ood watch", description="Compare a log's scores with those of calibration."
    )
    add = parser.add_argument
    add("log", type=Path, help="JSON lines of robust-ood predict --json, or serve --log")
    add("--guard", type=Path, required=True, help="the guard that wrote them")
    add("--window", type=int, default=200, help="images tested together")
    add("--false_alarm", type=float, default=0.01, help="probability of any false alarm in the log")
    add("--plot", type=Path | None, default=None, help="picture to write, .png or .svg")
    add("--fail-on-drift", action="store_true", help="exit with 1 where the scores have drifted")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Compare, print a sentence, and return the exit code."""
    config = parse_arguments(parser(), arguments)
    if config.plot is not None:
        check_file(config.plot, "plot")
        if config.plot.suffix.lower() not in (".png", ".svg"):
            raise UserError(f"plot: expected a name that ends in .png or .svg, got {config.plot}")
    guard = load_guard(config.guard)
    scores = read_log(config.log)
    if len(scores) < LEAST:
        raise UserError(
            f"log: {config.log} has the scores of {len(scores)} images; at least {LEAST} "
            "are compared"
        )
    threshold = float(guard.threshold)
    calibration = guard.calibration.numpy()
    drift = watch(
        calibration, scores, threshold, window=config.window, false_alarm=config.false_alarm
    )
    print(drift.in_words())
    if config.plot is not None:
        draw(drift, calibration, scores, config.plot, threshold)
        print(f"wrote {config.plot}")
    if config.fail_on_drift and drift.drifted:
        return DRIFTED
    return 0
