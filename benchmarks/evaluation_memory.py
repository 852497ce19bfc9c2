"""Peak memory of evaluations of 10,000 and of 40,000 images a set, in separate processes.

    python benchmarks/evaluation_memory.py --output docs/results/evaluation_memory.md
    python benchmarks/evaluation_memory.py --images 500 2000

Synthetic images in memory-mapped `.npy` files and labels in others, an untrained WideResNet-10-1,
MSP and Energy, clean and under one step of FGSM. The pages of a mapped file that the system keeps
in memory for others to reuse are not the process's own: what is compared is its anonymous memory
(`RssAnon`), sampled every 5 ms.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from kill_and_resume_evaluation import save_network
from page import table, write_page

ROOT = Path(__file__).resolve().parent.parent
_SIZE = 16


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs=2, default=[10_000, 40_000])
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "evaluation_memory"
    )
    parser.add_argument("--output", type=Path, help="Markdown page of the outcome")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    checkpoint = save_network(options.folder / "net" / "last.ckpt")
    peaks, seconds = [], []
    for count in options.images:
        begin = time.monotonic()
        peaks.append(
            measure(
                checkpoint, write_arrays(options.folder / str(count), count), options.folder, count
            )
        )
        seconds.append(time.monotonic() - begin)
        print(
            f"{count} images a set: peak {peaks[-1] / 2**20:.1f} MiB, {seconds[-1]:.0f} s",
            flush=True,
        )
    growth = peaks[1] / peaks[0] - 1
    print(f"growth {growth:+.1%}, 5 % is allowed")
    if options.output is not None:
        write_page(
            options.output, "Memory of an evaluation", report(options.images, peaks, seconds)
        )
    return 0 if growth < 0.05 else 1


def report(counts: list[int], peaks: list[int], seconds: list[float]) -> list[str]:
    """Return the page's lines."""
    rows = [
        (count, f"{peak / 2**20:.1f}", f"{peak / peaks[0] - 1:+.1%}", f"{taken:.0f}")
        for count, peak, taken in zip(counts, peaks, seconds, strict=True)
    ]
    return [
        f"Three sets of that many synthetic {_SIZE} x {_SIZE} images, MSP and Energy, clean and "
        "under FGSM: the largest anonymous memory of the process.",
        "",
        *table(("images a set", "peak, MiB", "against the first", "seconds"), rows),
    ]


def write_arrays(folder: Path, count: int) -> Path:
    """Write one labelled and two unlabelled sets, a part at a time."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for name in ("test", "near", "far"):
        shape = (count, _SIZE, _SIZE, 3)
        images = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape)
        for start in range(0, count, 1000):
            part = images[start : start + 1000]
            part[:] = draws.integers(0, 256, part.shape, dtype=np.uint8)
        images.flush()
    np.save(folder / "labels.npy", np.arange(count) % 10)
    return folder


def measure(checkpoint: Path, arrays: Path, folder: Path, count: int) -> int:
    """Return the peak of a real evaluation, in bytes."""
    given = [
        *(
            "--checkpoint",
            str(checkpoint),
            "--output",
            str(folder / f"results-{count}"),
            "--data.root",
            str(arrays),
        ),
        *(
            "--data.test",
            "{source: test.npy, labels: labels.npy}",
            "--data.near",
            "[near.npy]",
            "--data.far",
            "[far.npy]",
        ),
        *(
            "--detectors",
            "[msp, energy]",
            "--attacks",
            "[{name: fgsm, radius: 8/255}]",
            "--sanity",
            "false",
        ),
        *("--intervals", "200", "--data.num_classes", "10"),
        *("--report", "false", "--figures", "false"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *given],
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"evaluate.py ended with {process.returncode}")
    return peak


def anonymous(pid: int) -> int:
    """Return the anonymous memory of a process in bytes, 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    sys.exit(main())
