"""Images a second from disk to augmented float batches: our loaders and torchvision's data sets with a DataLoader.

    python benchmarks/loader.py [--count 20000] [--files 2000] [--workers 2] [--threads 2]

Both kinds on the same images with the same augmentation (crop with padding 4, mirror), batches of 128, in one run:
uint8 arrays in memory (against torchvision's transforms image by image, as its CIFAR-10 recipe has them) and image
files. Memory is the growth of what this process and its workers hold alone, at its peak; Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from robust_ood.data import ImageSet, Reading, TrainingLoader, to_float
from robust_ood.data.augment import crop_and_flip
from robust_ood.data.files import Fit
from robust_ood.data.folders import load_folder
from robust_ood.randomness import generator

BATCH = 128


class PerImage(Dataset):
    """CIFAR as torchvision holds it: an array whose images become Pillow images, then tensors, one at a time."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def recipe(size: int, resize: bool) -> transforms.Compose:
    """Return torchvision's steps for one image."""
    fit = [transforms.Resize(size), transforms.CenterCrop(size)] if resize else []
    return transforms.Compose(
        [*fit, transforms.RandomCrop(size, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )


def ours(images: ImageSet, workers: int) -> Iterable[torch.Tensor]:
    """Yield our augmented float batches of one epoch."""
    loader = TrainingLoader(images, None, batch_size=BATCH, outlier_batch_size=0, seed=0, reading=Reading(workers))
    for batch in loader:
        yield to_float(crop_and_flip(batch.images, generator(0, "augment", batch.epoch, batch.step)))


def theirs(dataset: Dataset, workers: int) -> Iterable[torch.Tensor]:
    """Yield torchvision's augmented float batches of one epoch."""
    for images, _ in DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers):
        yield images


def measure(name: str, batches: Callable[[], Iterable[torch.Tensor]], rounds: int = 3) -> dict[str, object]:
    """Return the images a second of the fastest of some epochs, and the growth of memory in MiB."""
    peak, stop = [0], threading.Event()
    before = resident()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    rates = []
    for _ in range(rounds):
        begin, count = time.perf_counter(), 0
        for images in batches():
            count += len(images)
        rates.append(count / (time.perf_counter() - begin))
    stop.set()
    watcher.join()
    row = {"loader": name, "images_per_second": round(max(rates)), "memory_mib": max(0, peak[0] - before) >> 20}
    print(json.dumps(row), flush=True)
    return row


def resident() -> int:
    """Return the bytes that this process and its children hold alone, so that shared pages do not count."""
    own, total = os.getpid(), 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if own in (parent, int(folder.name)):
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))
        except (OSError, ValueError):  # it ended meanwhile
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="images in memory, 32 x 32")
    parser.add_argument("--files", type=int, default=2_000, help="JPEG files, about 256 x 256, read at 224")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (options.count, 32, 32, 3), dtype=np.uint8)
    labels = draw.integers(0, 10, options.count)
    memory = ImageSet("memory", images, labels)
    per_image = PerImage(images, labels, recipe(32, resize=False))
    fast = measure("ours, in memory", lambda: ours(memory, 0))
    rivals = [
        measure(f"torchvision, in memory, {workers} workers", lambda workers=workers: theirs(per_image, workers), 1)
        for workers in (0, options.workers)
    ]
    best = max(rival["images_per_second"] for rival in rivals)
    print(f"in memory: {fast['images_per_second'] / best:.1f} times torchvision's best\n")

    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.files):
            path = Path(folder) / str(number % 2) / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            noise = Image.fromarray(draw.integers(0, 256, (32, 36, 3), dtype=np.uint8))
            noise.resize((288, 256), Image.Resampling.BICUBIC).save(path, quality=90)
        files = load_folder(Path(folder), Fit(224))
        rival_files = ImageFolder(folder, recipe(224, resize=True))
        fast = measure("ours, files", lambda: ours(files, options.workers), 2)
        rival = measure("torchvision, files", lambda: theirs(rival_files, options.workers), 2)
        print(f"files: {fast['images_per_second'] / rival['images_per_second']:.2f} times torchvision's")


if __name__ == "__main__":
    main()
