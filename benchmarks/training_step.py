"""Time of a training step through `train.py` and in a bare loop of the same mathematics.

    python benchmarks/training_step.py --output docs/performance/training_step.md
    python benchmarks/training_step.py --all --device cuda

The real command runs with its loader, augmentation, optimiser, schedule, callbacks, progress bar
and loggers; after each of its steps the bare loop takes one, on the same network, batch sizes,
attack and precision. So each ratio compares neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
from pathlib import Path

from bare_loop import METHODS, NETWORKS, STEPS, BareLoop, command_arguments, write_arrays
from clock import Clock
from page import table, write_page

from robust_ood.cli import train

USUAL = (
    "standard:WRN-16-2", "oe:WRN-16-2", "adv:WRN-16-2", "aoe:WRN-16-2", "aloe:WRN-10-1",
    "aloe:WRN-16-2",
    "aloe:WRN-40-2", "aloe:DenseNet-BC-100-12",
)  # fmt: skip
WARM_UP = 3  # steps that allocate memory and choose kernels
PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = f"METHOD:NETWORK; methods {', '.join(METHODS)}; networks {', '.join(NETWORKS)}"
    parser.add_argument("--cases", nargs="+", default=list(USUAL), help=cases)
    parser.add_argument("--all", action="store_true", help="every method on every network")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument(
        "--batch-size", type=int, default=32, help="inliers; twice as many outliers"
    )
    parser.add_argument("--steps", type=int, default=12, help="pairs of steps that count")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--processor-time", action="store_true", help="count processor time: for a busy machine"
    )
    parser.add_argument("--output", type=Path, default=None, help="Markdown page to write")
    options = parser.parse_args()
    if options.all:
        options.cases = [f"{method}:{network}" for network in NETWORKS for method in METHODS]
    rows = []
    for case in options.cases:
        usual = None
        for precision in options.precisions:
            stack, bare = measure(*case.split(":"), precision == "bfloat16", options)
            usual = usual or statistics.median(stack)
            rows.append(
                [
                    *case.split(":"),
                    precision,
                    *summary(stack, bare),
                    f"{usual / statistics.median(stack):.2f}",
                ]
            )
            print(*rows[-1], flush=True)
    if options.output:
        write_page(
            options.output,
            "Training steps against a bare loop",
            report(rows, options),
            "pytorch-lightning",
        )


def measure(
    method: str, network: str, bfloat16: bool, options: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Return the seconds of each step through the command, and of the bare loop's step after it."""
    steps, size = options.steps + WARM_UP, options.batch_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arrays(folder, size, steps + 1)
        bare = BareLoop(method, network, bfloat16, folder, size, options.device)
        Clock.set(bare.step, processor=options.processor_time)
        arguments = command_arguments(method, network, bfloat16, folder, size, options.device)
        with contextlib.redirect_stdout(io.StringIO()):
            code = train([*arguments, "--trainer.max_steps", str(steps)])
    if code:
        raise SystemExit(code)
    return Clock.steps[WARM_UP:], Clock.rivals[WARM_UP:]


def summary(stack: list[float], bare: list[float]) -> list[str]:
    """Return median milliseconds of both, and the median ratio with its quartiles."""
    ratios = [ours / theirs for ours, theirs in zip(stack, bare, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    times = [f"{1e3 * statistics.median(one):.0f}" for one in (bare, stack)]
    return [*times, f"{middle:.3f} ({low:.3f} to {high:.3f})"]


def report(rows: list[list[str]], options: argparse.Namespace) -> list[str]:
    """Return the page's lines."""
    aloe = [f"{row[5].split()[0]} ({row[1]}, {row[2]})" for row in rows if row[0] == "aloe"]
    clock = "processor time" if options.processor_time else "wall-clock time"
    return [
        f"**A step of ALOE through the whole stack takes {', '.join(aloe)} times as long as in a "
        "bare loop.**",
        "",
        f"Milliseconds a step ({clock}) on {options.batch_size} inliers and "
        f"{2 * options.batch_size} outliers, where the method has them; attacks of {STEPS} steps "
        "from a random start. The stack is `train.py fit` with Lightning, loader, augmentation, "
        "callbacks, progress bar and logging; the bare loop is `benchmarks/bare_loop.py`. "
        f"Ratio: stack / bare loop, median of {options.steps} neighbouring steps (quartiles). "
        f"Last column: how many times faster than in {options.precisions[0]} the stack is.",
        "",
        *table(("method", "network", "precision", "bare", "stack", "ratio", "faster"), rows),
    ]


if __name__ == "__main__":
    main()
