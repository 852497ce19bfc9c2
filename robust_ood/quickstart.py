"""`make quickstart`: an ordinary detector fails under attack, a robust one does not.

It runs the commands that a user runs, on small real images in minutes, and merges their results.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from robust_ood.cli import evaluate, train
from robust_ood.cli.presentation import command_line
from robust_ood.errors import UserError
from robust_ood.evaluation import Results, print_results
from robust_ood.reporting import check_installed, write_report

METHODS = ("oe", "aloe")
LEGEND = "AUROC: 1 separates digits from photographs without error, 0.5 is chance."


def main(arguments: Sequence[str] | None = None) -> int:
    """Train OE and ALOE on the embedded digits, attack both, and return the exit code."""
    options = _options(arguments)
    try:
        check_installed()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    results = Results()
    for method in METHODS:
        folder = options.output / method
        fit_arguments, evaluate_arguments = _commands(method, folder, short=options.short)
        code = _run("train", fit_arguments, train, console)
        if code == 0:
            code = _run("evaluate", evaluate_arguments, evaluate, console)
        if code:
            return code
        results.extend(Results.read(folder))
    results.write(options.output)
    console.rule("an ordinary and a robust network under the same attack", align="left")
    console.print(LEGEND)
    print_results(results, console)
    console.print(_verdict(results))
    console.print(f"wrote {options.output / 'results.json'} and {options.output / 'results.csv'}")
    folders = [options.output / method for method in METHODS]
    page = write_report(folders, options.output / "report.html")
    console.print(f"wrote {page}: open it in a browser")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train and attack an ordinary and a robust detector."
    )
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"))
    parser.add_argument(
        "--short",
        action="store_true",
        help="use a few steps and images, only to test that it runs",
    )
    return parser.parse_args(arguments)


def _commands(method: str, folder: Path, *, short: bool) -> tuple[list[str], list[str]]:
    """Return the arguments of `train` and of `evaluate`."""
    fit = ["fit", "-c", f"configs/experiments/digits_{method}.yaml"]
    fit += ["--output", str(folder), "--replace", "true"]
    score = ["-c", "configs/evaluate/quickstart.yaml", "--checkpoint", str(folder / "last.ckpt")]
    score += ["--name", method.upper(), "--output", str(folder), "--replace", "true"]
    score += ["--report", "false"]
    if short:
        fit += ["--trainer.max_steps", "3"]
        score += ["--limit", "2", "--sanity", "false", "--figures", "[shift]"]
    return fit, score


def _run(
    name: str, arguments: list[str], command: Callable[[list[str]], int], console: Console
) -> int:
    console.rule(command_line(name, arguments), align="left", style="dim")
    return command(arguments)


def _verdict(results: Results) -> str:
    """Say in a sentence each what happened to MSP on the far photograph."""
    aurocs: dict[tuple[str, str], float] = {}
    for row in results.rows:
        if row.detector == "msp" and row.ood == "flower-patches":
            aurocs[row.model, row.attacked] = row.auroc
    sentences = []
    for method in METHODS:
        model = method.upper()
        clean = aurocs[model, "none"]
        attacked = aurocs[model, "both"]
        sentences.append(
            f"{model} with MSP on photograph patches: AUROC {clean:.3f} clean, {attacked:.3f} with "
            "inliers and outliers attacked"
        )
    return "\n".join(sentences)


if __name__ == "__main__":
    sys.exit(main())
