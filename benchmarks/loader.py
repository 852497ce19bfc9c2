"""Images a second and memory, from disk to augmented batches: our loaders and torchvision's.

    python benchmarks/loader.py --output docs/performance/loader.md \\
        [--count 50000] [--files 2000] [--workers 2]

Both kinds on the same images with the same augmentation (crop with padding 4, mirror), batches of
128, in one run: CIFAR-sized arrays in memory (against `torchvision.datasets.CIFAR10` with its
image-by-image transforms, as its recipes have them) and JPEG files (against
`torchvision.datasets.ImageFolder`). Every case runs in a fresh process. Its memory is the peak of
that process and its workers together, looked at every 20 ms: the proportional set size without
files, so that what processes share counts once and libraries not at all. What the imports alone
take is a case of its own. Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from page import table, write_page
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder, VisionDataset

from robust_ood.data import ImageSet, Reading, TrainingLoader, to_float
from robust_ood.data.augment import crop_and_flip
from robust_ood.data.sources.folders import load_folder
from robust_ood.data.sources.form import ImageForm
from robust_ood.randomness import generator

BATCH, SIDE = 128, 224
CASES = (
    "imports alone", "ours, memory", "torchvision, memory", "torchvision, memory, workers",
    "ours, files", "torchvision, files", "ours, files, workers", "torchvision, files, workers",
)  # fmt: skip


class Generated(CIFAR10):
    """torchvision's own data set, holding drawn images instead of the downloaded ones."""

    def __init__(self, count: int, transform: transforms.Compose) -> None:
        VisionDataset.__init__(self, transform=transform)
        self.data, self.targets = drawn(count)


def drawn(count: int) -> tuple[np.ndarray, list[int]]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), draw.integers(
        0, 10, count
    ).tolist()


def write_files(folder: Path, count: int) -> None:
    """Write JPEG files of 288 x 256 smooth noise in two class folders."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        noise = Image.fromarray(draw.integers(0, 256, (32, 36, 3), dtype=np.uint8))
        noise.resize((288, 256), Image.Resampling.BICUBIC).save(path, quality=90)


def recipe(size: int, resize: bool) -> transforms.Compose:
    """Return torchvision's steps for one image."""
    fit = [transforms.Resize(size), transforms.CenterCrop(size)] if resize else []
    return transforms.Compose(
        [
            *fit,
            transforms.RandomCrop(size, 4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )


def ours(images: ImageSet, workers: int) -> Iterable[torch.Tensor]:
    """Yield our augmented float batches of one epoch."""
    loader = TrainingLoader(
        images, None, batch_size=BATCH, outlier_batch_size=0, seed=0, reading=Reading(workers)
    )
    for batch in loader:
        yield to_float(
            crop_and_flip(batch.images, generator(0, "augment", batch.epoch, batch.step))
        )


def theirs(dataset: Dataset, workers: int) -> Iterable[torch.Tensor]:
    """Yield torchvision's augmented float batches of one epoch."""
    for images, _ in DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers):
        yield images


def run_case(case: str, options: argparse.Namespace) -> dict[str, object]:
    """Return the images a second of the fastest epoch; `watched` observes this process."""
    workers = options.workers if case.endswith("workers") else 0
    if case == "imports alone":
        return {"images_per_second": None}
    if case == "ours, memory":
        pixels, labels = drawn(options.count)
        images, make = ImageSet("memory", pixels, np.array(labels)), ours
    elif case.startswith("torchvision, memory"):
        images, make = Generated(options.count, recipe(32, resize=False)), theirs
    elif case.startswith("ours, files"):
        images, make = load_folder(options.folder, ImageForm(SIDE)), ours
    else:
        images, make = ImageFolder(str(options.folder), recipe(SIDE, resize=True)), theirs
    rates = []
    for _ in range(options.rounds):
        begin, count = time.perf_counter(), 0
        for batch in make(images, workers):
            count += len(batch)
        rates.append(count / (time.perf_counter() - begin))
    return {"images_per_second": round(max(rates))}


def watched(case: str, options: argparse.Namespace) -> dict[str, object]:
    """Run a case in a fresh process and return what it measured, with its peak memory in MiB."""
    command = [sys.executable, __file__, "--case", case]
    for name in ("count", "files", "workers", "threads", "rounds", "folder"):
        command += [f"--{name}", str(getattr(options, name))]
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(0.02)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{case}: ended with {process.returncode}")
    row = {"case": case, **json.loads(said), "peak_mib": peak >> 20}
    print(json.dumps(row), flush=True)
    return row


def held(pid: int) -> int:
    """Return the proportional set size, in bytes without file pages, , with its children."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended meanwhile
        return 0
    own = sum(
        int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
    )
    return own + sum(held(int(child)) for child in children)


def report(rows: dict[str, dict[str, object]], options: argparse.Namespace) -> list[str]:
    """Return the page's lines."""
    rates = {case: row["images_per_second"] for case, row in rows.items()}
    base = rows["imports alone"]["peak_mib"]
    body = [
        [case, rates[case] or "", row["peak_mib"], row["peak_mib"] - base]
        for case, row in rows.items()
    ]
    memory = rates["ours, memory"] / max(
        rates["torchvision, memory"], rates["torchvision, memory, workers"]
    )
    own, other = (
        max(rates[f"{who}, files"], rates[f"{who}, files, workers"])
        for who in ("ours", "torchvision")
    )
    return [
        f"{options.count} images of 32 x 32 as one array ({options.count * 3072 >> 20} MiB), and "
        f"{options.files} JPEG",
        f"files of 288 x 256 read at {SIDE}; random crop with padding 4 and mirror, batches of "
        f"{BATCH} floats;",
        f"{options.threads} threads, and {options.workers} worker processes where the case says "
        "so. Each case is the",
        f"fastest of {options.rounds} epochs in a fresh process; memory is that of the process "
        "with its workers at its",
        "peak, what they share counted once and libraries left out (PSS without files).",
        "",
        *table(["case", "images a second", "peak memory, MiB", "above the imports, MiB"], body),
        f"In memory, ours reads {memory:.1f} times as fast as the better of torchvision's "
        "(wanted: at least 10, and at",
        f"least 100,000 images a second); from files {own / other:.2f} times.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    parser.add_argument("--count", type=int, default=50_000, help="images in memory, 32 x 32")
    parser.add_argument("--files", type=int, default=2_000, help="JPEG files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="epochs, of which the fastest counts")
    parser.add_argument(
        "--folder", type=Path, help="where the files are written; a temporary folder by default"
    )
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if min(options.count, options.files) < BATCH:
        parser.error(f"--count and --files: at least one batch of {BATCH} is required")
    if options.case:
        print(json.dumps(run_case(options.case, options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        write_files(options.folder, options.files)
        rows = {case: watched(case, options) for case in CASES}
    lines = report(rows, options)
    if options.output:
        write_page(options.output, "Loaders: images a second, and memory", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
