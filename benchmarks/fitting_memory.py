"""Peak memory of fitting and scoring at 224 px with 1,000 classes, for two numbers of images.

    python benchmarks/fitting_memory.py --output docs/results/fitting_memory.md
    python benchmarks/fitting_memory.py --network resnet18 --images 1000 4000

Mahalanobis, KNN, ViM and Gram over a random network, small or torchvision's, fitted on images and
scoring them as evaluations do, read from a memory-mapped file, each number of images in a process
of its own. What is compared is the process's anonymous memory (`RssAnon`), sampled every 20 ms; the
pages of a mapped file are not its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluation_memory import anonymous
from page import table, write_page
from torch import Tensor, nn
from torchvision.models import get_model
from workbench import Parts

from robust_ood import detectors
from robust_ood.data import EvaluationLoader, ImageSet, to_float
from robust_ood.evaluation.scoring import Scorer

CLASSES = 1000
SIDE = 224
BATCH = 50
NETWORKS = {
    "small": "a network of two convolutions and 64 features",
    "resnet18": "ResNet-18 (512 features, convolutions in bfloat16)",
    "resnet50": "ResNet-50 (2,048 features, convolutions in bfloat16)",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 8000])
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--folder", type=Path, help="where finished parts are kept")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--fit", type=Path, help="internal: fit on the images of a file")
    options = parser.parse_args()
    if options.fit is not None:
        fit_and_score(options.fit, options.network)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        parts = Parts(folder, {"network": options.network}, len(options.images))
        measured = []
        for count in options.images:
            measured.append(parts(str(count), partial(peak_of, count, options.network)))
    growth = measured[-1]["peak"] / measured[0]["peak"] - 1
    if options.output is not None:
        write(options, measured)
    return 0 if growth < 0.05 else 1


def write(options: argparse.Namespace, measured: list[dict[str, Any]]) -> None:
    """Write the page."""
    rows = []
    first = measured[0]["peak"]
    for count, part in zip(options.images, measured, strict=True):
        peak = part["peak"]
        rows.append(
            (count, f"{peak / 2**20:.0f}", f"{peak / first - 1:+.1%}", f"{part['seconds']:.0f}")
        )
    lines = [
        "Mahalanobis, KNN (a bank of 1,000 features), ViM and Gram fitted on and scoring that "
        f"many images of {SIDE} x {SIDE} pixels and {CLASSES} classes; "
        f"{NETWORKS[options.network]}, random weights.",
        "",
        *table(("images", "peak, MiB", "against the first", "seconds"), rows),
    ]
    write_page(options.output, "Memory of fitting at ImageNet's size", lines)


def peak_of(count: int, name: str) -> dict[str, Any]:
    """Return the peak of a process that fits on and scores so many images, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        return {"peak": measure(write_images(Path(folder), count), name)}


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


class HalfPrecision(nn.Module):
    """A network that computes in bfloat16, for time alone, and returns float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.module(images)
        return logits.float()


def network(name: str) -> nn.Module:
    """Return a random network of 1,000 classes at 224 px."""
    torch.manual_seed(0)
    if name != "small":
        return HalfPrecision(get_model(name, num_classes=CLASSES)).eval()
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=8),
        nn.ReLU(),
        nn.Conv2d(16, 64, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    ).eval()


def fit_and_score(path: Path, name: str) -> None:
    """Fit the four detectors on the images of a file, and score them."""
    pixels = np.load(path, mmap_mode="r")
    labels = np.arange(len(pixels)) % CLASSES
    images = ImageSet("images", pixels, labels)
    net = network(name)
    layers = ("0", "2") if name == "small" else ("module.layer3", "module.layer4")
    built: list[detectors.Detector] = [
        detectors.Mahalanobis(net),
        detectors.KNN(net, neighbours=5, bank_size=1000),
        detectors.ViM(net, dimensions=16),
        detectors.Gram(net, layers=layers),
    ]
    detectors.fit(built, Batches(images))
    by_name = {type(detector).__name__: detector for detector in built}
    Scorer("cpu").score(by_name, EvaluationLoader(images, batch_size=BATCH))


class Batches:
    """Batches of floats and labels, which may be passed over several times."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in EvaluationLoader(self.images, batch_size=BATCH):
            yield to_float(batch.images), batch.labels


def measure(path: Path, name: str) -> int:
    """Return the peak of a process that fits and scores, in bytes."""
    process = subprocess.Popen([sys.executable, __file__, "--fit", str(path), "--network", name])
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"fitting ended with {process.returncode}")
    return peak


if __name__ == "__main__":
    sys.exit(main())
