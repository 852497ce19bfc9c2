"""What certificates cost: several detectors against one, and memory by draws and by images.

    python benchmarks/certificates_cost.py --output docs/performance/certificates.md

An untrained ResNet-20 (costs do not depend on weights); detectors fitted on random images. Memory
is the largest that a process holds of its own (`RssAnon`), in a fresh process each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from evaluation_memory import anonymous
from page import table, write_page
from rounds import CLOCK, interleaved, ratio

from robust_ood import certify, detectors
from robust_ood.detectors import Detector
from robust_ood.models import ThinResNet

NAMES = ("msp", "energy", "maxlogit", "gen", "mahalanobis", "knn", "vim", "react")
GROWTH = ((2, 512), (2, 5120), (20, 512))
"""Images and draws of the processes whose memory is compared."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    parser.add_argument("--only-bound", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_bound:
        bound(fitted(("msp",)), options.images, options.draws)
        return 0
    chosen = fitted(NAMES)
    contestants = {"msp": partial(bound, {"msp": chosen["msp"]}, options.images, options.draws)}
    for count in (2, len(NAMES)):
        some = {name: chosen[name] for name in NAMES[:count]}
        contestants[", ".join(some)] = partial(bound, some, options.images, options.draws)
    seconds = interleaved(contestants, options.rounds)
    rows = []
    for name, taken in seconds.items():
        rows.append((name, f"{min(taken):.2f}", ratio(taken, seconds["msp"])))
    lines = [
        f"ResNet-20, {options.images} images of 3 x 32 x 32, {options.draws} draws each, {CLOCK}, "
        f"{options.rounds} rounds. Bounding {len(NAMES)} detectors of one network takes "
        f"**{rows[-1][2].split()[0]} times** as long as MSP alone.",
        "",
        *table(("detectors", "seconds", "against MSP alone"), rows),
        "Memory of a process that does nothing else:",
        "",
        *table(("images", "draws", "peak, MiB"), [grown(*case) for case in GROWTH]),
    ]
    print("\n".join(lines))
    if options.output:
        write_page(options.output, "What certificates cost", lines)
    return 0


def fitted(names: tuple[str, ...]) -> dict[str, Detector]:
    """Return detectors of one network by name, fitted on random images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ThinResNet().eval()
    draws = torch.Generator().manual_seed(1)
    images = torch.rand(600, 3, 32, 32, generator=draws)
    batches = list(zip(images.split(100), (torch.arange(600) % 10).split(100), strict=True))
    chosen = detectors.build_all(list(names), net)
    detectors.fit(chosen.values(), batches)
    return chosen


def bound(chosen: dict[str, Detector], count: int, draws: int) -> None:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    certify.score_bounds(chosen, images, radius=0.1, sigma=0.25, draws=draws)


def grown(count: int, draws: int) -> tuple[int, int, str]:
    """Return images, draws, and the peak memory of a process that bounds their scores."""
    command = [sys.executable, __file__, "--only-bound"]
    # A fresh process: memory that was given back may stay with the one that held it.
    process = subprocess.Popen([*command, "--images", str(count), "--draws", str(draws)])
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return count, draws, f"{peak / 2**20:.0f}"


if __name__ == "__main__":
    sys.exit(main())
