"""Peak memory of training steps through `train.py` and in a bare loop, in fresh processes.

    python benchmarks/memory.py --output docs/performance/memory.md

Counted is what a process holds of its own (`RssAnon`), sampled every 5 ms: the peak of a process
that takes some steps, less that of one that does all the same and takes none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bare_loop import METHODS, NETWORKS, BareLoop, command_arguments, write_arrays
from evaluation_memory import anonymous
from page import table, write_page

from robust_ood.cli import train

STEPS = 4
KINDS = ("bare", "stack")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = f"METHOD:NETWORK; methods {', '.join(METHODS)}; networks {', '.join(NETWORKS)}"
    parser.add_argument(
        "--cases", nargs="+", default=["aloe:WRN-16-2", "aloe:DenseNet-BC-100-12"], help=cases
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="inliers; twice as many outliers"
    )
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    parser.add_argument(
        "--steps", type=int, help=argparse.SUPPRESS
    )  # this process is one that is watched
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        return take_steps(options.kind, options.cases[0], options.batch_size, options.steps)
    rows, starts = [], [(kind, steps) for steps in (0, STEPS) for kind in KINDS]
    for case in options.cases:
        peaks = {
            (kind, steps): watched(kind, case, options.batch_size, steps) for kind, steps in starts
        }
        bare, stack = (peaks[kind, STEPS] - peaks[kind, 0] for kind in KINDS)
        sizes = [
            f"{size / 2**20:.0f}" for size in (peaks["bare", 0], peaks["stack", 0], bare, stack)
        ]
        rows.append((*case.split(":"), *sizes, f"{stack / bare:.3f}"))
        print(*rows[-1], flush=True)
    if options.output:
        found = ", ".join(f"{row[6]} ({row[0]}, {row[1]})" for row in rows)
        lines = [
            f"**Steps through the whole stack take {found} times the memory of a bare loop's.**",
            "",
            "MiB: what a process holds that takes no step (libraries, images, network), and "
            f"what {STEPS} steps of {options.batch_size} inliers and {2 * options.batch_size} "
            "outliers in float32 add at their peak.",
            "",
            *table(
                ("method", "network", "bare, no step", "stack, no step", "bare", "stack", "ratio"),
                rows,
            ),
        ]
        write_page(options.output, "Memory of training", lines, "pytorch-lightning")
    return 0


def watched(kind: str, case: str, size: int, steps: int) -> int:
    """Return the peak of a fresh process, in bytes."""
    given = ["--kind", kind, "--steps", str(steps), "--cases", case, "--batch-size", str(size)]
    with subprocess.Popen([sys.executable, __file__, *given], stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{kind}, {case}: ended with {process.returncode}")
    return peak


def take_steps(kind: str, case: str, size: int, steps: int) -> int:
    """Train for some steps in this process, and return the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arrays(folder, size, STEPS + 1)
        if kind == "stack":
            arguments = command_arguments(*case.split(":"), False, folder, size, "cpu")
            return train([*arguments, "--trainer.max_steps", str(steps)])
        loop = BareLoop(*case.split(":"), False, folder, size, "cpu")
        for _ in range(steps):
            loop.step()
    return 0


if __name__ == "__main__":
    sys.exit(main())
