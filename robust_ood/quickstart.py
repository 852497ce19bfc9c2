"""`make quickstart`: an ordinary detector collapses under attack, a robust one does not, on real
images, in minutes.

It runs the same commands that a user runs, one after the other, and puts their results together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from robust_ood.cli import evaluate, train
from robust_ood.cli.presentation import command_line
from robust_ood.errors import UserError
from robust_ood.evaluation import Results, print_results
from robust_ood.reporting import check_installed, write_report

METHODS = ("oe", "aloe")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train OE and ALOE on the embedded digits, evaluate both under one attack, and return the exit
    code.
    """
    parser = argparse.ArgumentParser(
        description="Train and attack an ordinary and a robust detector."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "--short",
        action="store_true",
        help="a few steps and images: whether it runs, not what it shows",
    )
    options = parser.parse_args(arguments)
    try:
        check_installed()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    results = Results()
    for method in METHODS:
        folder = options.output / method
        fit = ["fit", "-c", f"configs/experiments/digits_{method}.yaml", "--output", str(folder),
               "--replace", "true"]  # fmt: skip
        score = ["-c", "configs/evaluate/quickstart.yaml", "--checkpoint", str(folder / "last.ckpt"),
                 "--name", method.upper(), "--output", str(folder), "--replace", "true",
                 "--report", "false"]  # fmt: skip
        if options.short:
            fit += ["--trainer.max_steps", "3"]
            score += ["--limit", "2", "--sanity", "false", "--figures", "[shift]"]
        for name, command, run in (("train", fit, train), ("evaluate", score, evaluate)):
            console.rule(command_line(name, command), align="left", style="dim")
            code = run(command)
            if code:
                return code
        results.extend(Results.read(folder))
    results.write(options.output)
    console.rule("an ordinary and a robust network under the same attack", align="left")
    print_results(results, console)
    console.print(_verdict(results))
    console.print(f"wrote {options.output / 'results.json'} and {options.output / 'results.csv'}")
    page = write_report(
        [options.output / method for method in METHODS], options.output / "report.html"
    )
    console.print(f"wrote {page}: open it in a browser")
    return 0


def _verdict(results: Results) -> str:
    """Say in a sentence each what happened to MSP on the far photograph."""
    rows = {
        (r.model, r.attacked): r
        for r in results.rows
        if r.detector == "msp" and r.ood == "flower-patches"
    }
    return "\n".join(
        f"{m.upper()} with MSP on photograph patches: AUROC {rows[m.upper(), 'none'].auroc:.3f} clean, "
        f"{rows[m.upper(), 'both'].auroc:.3f} with inliers and outliers attacked"
        for m in METHODS
    )


if __name__ == "__main__":
    sys.exit(main())
