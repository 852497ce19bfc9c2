"""Start-up: what `import robust_ood` and the commands' help cost beyond their libraries.

    python benchmarks/startup.py --output docs/performance/startup.md

Each line is a fresh interpreter; the lines take turns.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from page import ROOT, table, write_page

LIBRARIES = ("-c", "import torch, pytorch_lightning")
EVERYTHING = (
    "import torch, pytorch_lightning, robust_ood; "
    "[getattr(robust_ood, name) for name in robust_ood.__all__]"
)
CALLS = {
    "import torch, pytorch_lightning": LIBRARIES,
    "the same and import robust_ood": ("-c", "import torch, pytorch_lightning, robust_ood"),
    "the same and all that robust_ood offers": ("-c", EVERYTHING),
    "python train.py --help": ("train.py", "--help"),
    "python evaluate.py --help": ("evaluate.py", "--help"),
    "python train.py fit --help": ("train.py", "fit", "--help"),
}
ALLOWED = {
    "the same and import robust_ood": 0.3, "python train.py --help": 2.0,
    "python evaluate.py --help": 2.0,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--processor-time", action="store_true", help="count processor time: for a busy machine"
    )
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in CALLS}
    for name in [*CALLS] * (options.rounds + 1):
        taken[name].append(seconds(CALLS[name], options.processor_time))
    rows, failures = [], 0
    libraries = next(iter(taken.values()))[1:]  # the first round read files into the system's cache
    for name, times in taken.items():
        extra = statistics.median(
            own - base for own, base in zip(times[1:], libraries, strict=True)
        )
        limit = ALLOWED.get(name)
        failures += limit is not None and extra > limit
        spread = (
            f"{statistics.median(times[1:]):.2f} ({min(times[1:]):.2f} to {max(times[1:]):.2f})"
        )
        rows.append(
            (f"`{name}`" if " and " not in name else name, spread, f"{extra:+.2f}", limit or "")
        )
        print(*rows[-1], flush=True)
    if options.output:
        clock = "processor time" if options.processor_time else "wall-clock time"
        lines = [
            f"Seconds of a fresh interpreter ({clock}), median of {options.rounds} (range); the "
            "calls take turns. Beyond: median difference to the first line's call of the same "
            "turn.",
            "",
            *table(("call", "seconds", "beyond the libraries", "allowed"), rows),
        ]
        write_page(options.output, "Start-up", lines, "pytorch-lightning")
    return 1 if failures else 0


def seconds(arguments: tuple[str, ...], processor: bool) -> float:
    """Return the wall or processor time of a fresh interpreter with these arguments."""
    begin, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if processor:
        return after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
