"""A training step in two processes (DDP, gloo) and in one, with equal images and cores.

    python benchmarks/two_processes.py --output docs/performance/two_processes.md

One process computes with two threads; two processes compute with one thread each, on half the batch
each, and average their gradients. Fresh runs of the real command take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bare_loop import METHODS, NETWORKS, command_arguments, write_arrays
from page import ROOT, table, write_page

WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cases = f"METHOD:NETWORK; methods {', '.join(METHODS)}; networks {', '.join(NETWORKS)}"
    parser.add_argument("--cases", nargs="+", default=["oe:WRN-16-2", "aloe:WRN-16-2"], help=cases)
    parser.add_argument(
        "--batch-size", type=int, default=64, help="inliers of a step, over all processes"
    )
    parser.add_argument("--steps", type=int, default=10, help="steps of a run that count")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    options = parser.parse_args()
    rows = []
    for case in options.cases:
        runs = [
            [step_time(case, processes, options) for processes in (1, 2)]
            for _ in range(options.rounds)
        ]
        ratios = [two / one for one, two in runs]
        times = [f"{1e3 * statistics.median(column):.0f}" for column in zip(*runs, strict=True)]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        rows.append((*case.split(":"), *times, spread))
        print(*rows[-1], flush=True)
    if options.output:
        found = ", ".join(f"{row[4].split()[0]} ({row[0]}, {row[1]})" for row in rows)
        lines = [
            f"**A step in two processes takes {found} times as long as in one that uses both "
            "cores.**",
            "",
            f"Milliseconds a step of {options.batch_size} inliers and {2 * options.batch_size} "
            f"outliers through `train.py`, float32: median of {options.steps} steps, then of "
            f"{options.rounds} runs in turn. Ratio: two processes / one process, median (range).",
            "",
            *table(("method", "network", "one process", "two processes", "ratio"), rows),
        ]
        write_page(options.output, "Two processes", lines, "pytorch-lightning")


def step_time(case: str, processes: int, options: argparse.Namespace) -> float:
    """Return the median seconds a step of a fresh run."""
    steps = options.steps + WARM_UP
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_arrays(folder, options.batch_size, steps + 1)
        size = options.batch_size // processes
        arguments = command_arguments(*case.split(":"), False, folder, size, "cpu", processes)
        times = [
            "--trainer.callbacks.file",
            str(folder / "times.json"),
            "--trainer.max_steps",
            str(steps),
        ]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(2 // processes),
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
        }
        command = [sys.executable, "train.py", *arguments, *times]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"train.py ended with {done.returncode}:\n{done.stderr}")
        return statistics.median(json.loads((folder / "times.json").read_text())[WARM_UP:])


if __name__ == "__main__":
    main()
