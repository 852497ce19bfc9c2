"""Peak memory of fitting and scoring at 224 px with 1,000 classes, for 2,000 and 8,000 images.

    python benchmarks/fitting_memory.py --output docs/results/fitting_memory.md

Mahalanobis, KNN, ViM and Gram over a small random network, images read from a memory-mapped file,
each number of images in a process of its own. What is compared is the process's anonymous memory
(`RssAnon`), sampled every 20 ms; the pages of a mapped file are not its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from evaluation_memory import anonymous
from page import table, write_page
from torch import Tensor, nn

from robust_ood import detectors
from robust_ood.data import EvaluationLoader, ImageSet, to_float

CLASSES = 1000
SIDE = 224


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs=2, default=[2000, 8000])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", type=Path, help="internal: fit on the images of a file")
    options = parser.parse_args()
    if options.fit is not None:
        fit_and_score(options.fit)
        return 0
    peaks = []
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for count in options.images:
            begin = time.monotonic()
            peaks.append(measure(write_images(Path(folder), count)))
            seconds.append(time.monotonic() - begin)
            print(f"{count} images: {peaks[-1] / 2**20:.0f} MiB, {seconds[-1]:.0f} s", flush=True)
    growth = peaks[1] / peaks[0] - 1
    if options.output is not None:
        rows = []
        for count, peak, taken in zip(options.images, peaks, seconds, strict=True):
            rows.append(
                (count, f"{peak / 2**20:.0f}", f"{peak / peaks[0] - 1:+.1%}", f"{taken:.0f}")
            )
        lines = [
            "Mahalanobis, KNN (a bank of 1,000 features), ViM and Gram fitted on and scoring that "
            f"many images of {SIDE} x {SIDE} pixels and {CLASSES} classes; a random network of 64 "
            "features.",
            "",
            *table(("images", "peak, MiB", "against the first", "seconds"), rows),
        ]
        write_page(options.output, "Memory of fitting at ImageNet's size", lines)
    return 0 if growth < 0.05 else 1


def write_images(folder: Path, count: int) -> Path:
    """Write random images, a part at a time."""
    path = folder / f"{count}.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, SIDE, SIDE, 3))
    draws = np.random.default_rng(0)
    for start in range(0, count, 100):
        images[start : start + 100] = draws.integers(
            0, 256, images[start : start + 100].shape, dtype=np.uint8
        )
    images.flush()
    return path


def network() -> nn.Module:
    """Return a small random network of 1,000 classes at 224 px."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=8),
        nn.ReLU(),
        nn.Conv2d(16, 64, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    ).eval()


def fit_and_score(path: Path) -> None:
    """Fit the four detectors on the images of a file, and score them."""
    pixels = np.load(path, mmap_mode="r")
    labels = np.arange(len(pixels)) % CLASSES
    images = ImageSet("images", pixels, labels)
    net = network()
    built = [
        detectors.Mahalanobis(net),
        detectors.KNN(net, neighbours=5, bank_size=1000),
        detectors.ViM(net, dimensions=16),
        detectors.Gram(net, layers=("0", "2")),
    ]
    detectors.fit(built, Batches(images))
    with torch.no_grad():
        for shown, _ in Batches(images):
            for detector in built:
                detector(shown)


class Batches:
    """Batches of floats and labels, which may be passed over several times."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in EvaluationLoader(self.images, batch_size=50):
            yield to_float(batch.images), batch.labels


def measure(path: Path) -> int:
    """Return the peak of a process that fits and scores, in bytes."""
    process = subprocess.Popen([sys.executable, __file__, "--fit", str(path)])
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"fitting ended with {process.returncode}")
    return peak


if __name__ == "__main__":
    sys.exit(main())
