"""Images a second, processor time and memory, from disk to batches: ours and torchvision's.

    python benchmarks/loader.py --output docs/performance/loader.md \\
        [--count 50000] [--files 1024] [--workers 2] [--rounds 7]

Both kinds read the same images into the same floats. Training reads are augmented (crop with
padding 4, mirror), in batches of 128: CIFAR-sized arrays in memory (against
`torchvision.datasets.CIFAR10` with its image-by-image transforms, as its recipes have them) and
JPEG files (against `torchvision.datasets.ImageFolder`). Where workers read, both augment in the
workers, as `OODData` does when it trains on the CPU. Evaluation reads take the files in order, by
the loader that fits and validates, and in chunks by threads, as scores are computed.

All cases take turns in one process, in an order that reverses every round, and each ratio is of
two neighbours in a round: other work on the machine then slows both. Processor time is that of the
process and its workers, and does not depend on other work. Memory is measured apart, each case in
a fresh process: the peak of it and its workers together, looked at every 20 ms, as the proportional
set size without files, so that what processes share counts once and libraries not at all. Linux.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from page import table, write_page
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import CIFAR10, ImageFolder, VisionDataset

from robust_ood.data import EvaluationLoader, ImageSet, Reading, TrainingLoader, to_float
from robust_ood.data.augment import crop_and_flip
from robust_ood.data.memory import take_by_threads
from robust_ood.data.reading import Batch
from robust_ood.data.sources.folders import load_folder
from robust_ood.data.sources.form import ImageForm
from robust_ood.evaluation.scoring import CHUNK
from robust_ood.randomness import generator

BATCH, SIDE = 128, 224
SECOND = 1e3  # milliseconds


class Pair(NamedTuple):
    """What ours and torchvision's read; `workers` are processes or, in chunks, threads."""

    title: str
    ours: str
    theirs: str
    their_workers: bool
    workers: bool


PAIRS = (
    Pair("training, arrays in memory", "memory", "memory", False, False),
    Pair("the same, torchvision with workers", "memory", "memory", True, False),
    Pair("training, files", "files", "files", False, False),
    Pair("training, files, workers", "files", "files", True, True),
    Pair("evaluation, files", "evaluation", "evaluation", False, False),
    Pair("evaluation, files, workers", "evaluation", "evaluation", True, True),
    Pair("evaluation in chunks, files", "chunks", "evaluation", False, False),
    Pair("evaluation in chunks, files, threads", "chunks", "evaluation", True, True),
)


class Measurement(NamedTuple):
    """Of one epoch: images a second by the clock, and milliseconds of processor time an image."""

    rate: float
    processor: float


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


def recipe(size: int, *, fit: bool, augment: bool) -> transforms.Compose:
    """Return torchvision's steps for one image."""
    steps: list[Callable[..., object]] = []
    if fit:
        steps += [transforms.Resize(size), transforms.CenterCrop(size)]
    if augment:
        steps += [transforms.RandomCrop(size, 4), transforms.RandomHorizontalFlip()]
    return transforms.Compose([*steps, transforms.ToTensor()])


def augmented(batch: Batch) -> Batch:
    """Return a batch cropped and mirrored, where it was read."""
    source = generator(0, "augment", batch.epoch, batch.step)
    return batch._replace(images=crop_and_flip(batch.images, source))


def ours_to_train(images: ImageSet, workers: int) -> Iterable[torch.Tensor]:
    """Yield our augmented float batches of one epoch."""
    loader = TrainingLoader(
        images,
        None,
        batch_size=BATCH,
        outlier_batch_size=0,
        seed=0,
        reading=Reading(workers),
        augment=augmented,
    )
    for batch in loader:
        yield to_float(batch.images)


def ours_to_evaluate(images: ImageSet, workers: int) -> Iterable[torch.Tensor]:
    """Yield all images in order, as validation and fitting read them."""
    for batch in EvaluationLoader(images, batch_size=BATCH, reading=Reading(workers)):
        yield to_float(batch.images)


def ours_in_chunks(images: ImageSet, threads: int) -> Iterable[torch.Tensor]:
    """Yield all images in order, as scoring reads them."""
    for indices in torch.split(torch.arange(len(images)), CHUNK):
        yield to_float(take_by_threads(images, indices, threads).images)


def theirs(dataset: Dataset, workers: int, training: bool) -> Iterable[torch.Tensor]:
    """Yield torchvision's float batches of one epoch."""
    loader = DataLoader(dataset, BATCH, shuffle=training, drop_last=training, num_workers=workers)
    for images, _ in loader:
        yield images


class Cases:
    """What can be read, each a function that reads one epoch.

    Args:
        options: of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._made: dict[tuple[str, str], object] = {}

    def epoch(self, who: str, what: str, workers: bool) -> Iterable[torch.Tensor]:
        """Return the batches of an epoch; `who` is "ours" or "torchvision"."""
        count = self.options.workers if workers else 0
        dataset = self._dataset(who, what)
        if who == "torchvision":
            return theirs(dataset, count, training=what in ("memory", "files"))
        read = {"evaluation": ours_to_evaluate, "chunks": ours_in_chunks}.get(what, ours_to_train)
        return read(dataset, count)

    def _dataset(self, who: str, what: str) -> object:
        if (who, what) not in self._made:
            make = self._ours if who == "ours" else self._torchvision
            self._made[who, what] = make(what)
        return self._made[who, what]

    def _ours(self, what: str) -> ImageSet:
        if what == "memory":
            pixels, labels = drawn(self.options.count)
            return ImageSet("memory", pixels, np.array(labels))
        return load_folder(self.options.folder, ImageForm(SIDE))

    def _torchvision(self, what: str) -> Dataset:
        if what == "memory":
            return Generated(self.options.count, recipe(32, fit=False, augment=True))
        steps = recipe(SIDE, fit=True, augment=what == "files")
        return ImageFolder(str(self.options.folder), steps)


def processor_seconds() -> float:
    """Return the processor time of this process and of its workers that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def measured(batches: Iterable[torch.Tensor]) -> Measurement:
    """Read an epoch; its workers have ended when their time is read."""
    gc.collect()
    processor = processor_seconds()
    begin = time.perf_counter()
    count = 0
    for images in batches:
        count += len(images)
    seconds = time.perf_counter() - begin
    del batches
    gc.collect()
    return Measurement(count / seconds, (processor_seconds() - processor) / count * SECOND)


def in_turns(cases: Cases, rounds: int) -> dict[Pair, list[tuple[Measurement, Measurement]]]:
    """Return what ours and torchvision's took in each round, after a warm-up."""
    results: dict[Pair, list[tuple[Measurement, Measurement]]] = {pair: [] for pair in PAIRS}
    for number in range(rounds + 1):
        for pair in PAIRS:
            contestants = [("ours", pair.ours, pair.workers)]
            contestants.append(("torchvision", pair.theirs, pair.their_workers))
            if number % 2:
                contestants.reverse()
            spent = {}
            for who, what, workers in contestants:
                spent[who] = measured(cases.epoch(who, what, workers))
            if number:
                results[pair].append((spent["ours"], spent["torchvision"]))
                print(number, pair.title, *results[pair][-1], flush=True)
    return results


def peak_of_case(case: str, options: argparse.Namespace) -> int:
    """Read an epoch in a fresh process, and return its peak memory in MiB."""
    command = [sys.executable, __file__, "--case", case]
    for name in ("count", "files", "workers", "threads", "folder"):
        command += [f"--{name}", str(getattr(options, name))]
    peak = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{case}: ended with {process.returncode}")
    return peak >> 20


def held(pid: int) -> int:
    """Return the proportional set size, in bytes without file pages, with its children."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it ended meanwhile
        return 0
    own = sum(
        int(line.split()[1]) << 10 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
    )
    return own + sum(held(int(child)) for child in children)


def spread(values: Iterable[float]) -> str:
    """Return the median and the range of ratios."""
    values = sorted(values)
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def rate_rows(
    results: dict[Pair, list[tuple[Measurement, Measurement]]],
) -> list[list[object]]:
    """Return the rows of the table of rates."""
    rows: list[list[object]] = []
    for pair, rounds in results.items():
        row: list[object] = [pair.title]
        for side in (0, 1):
            row.append(round(statistics.median(spent[side].rate for spent in rounds)))
        row.append(spread(own.rate / other.rate for own, other in rounds))
        for side in (0, 1):
            row.append(f"{statistics.median(spent[side].processor for spent in rounds):.2f}")
        row.append(spread(other.processor / own.processor for own, other in rounds))
        rows.append(row)
    return rows


def thread_gain(results: dict[Pair, list[tuple[Measurement, Measurement]]]) -> str:
    """Return how many times as fast threads read chunks as none, within the rounds."""
    alone = results[PAIRS[-2]]
    threads = results[PAIRS[-1]]
    pairs = zip(threads, alone, strict=True)
    return spread(with_threads[0].rate / without[0].rate for with_threads, without in pairs)


CASES = (
    "imports alone", "ours, memory", "torchvision, memory", "torchvision, memory, workers",
    "ours, files", "torchvision, files", "ours, files, workers", "torchvision, files, workers",
    "ours, chunks", "ours, chunks, workers",
)  # fmt: skip


def report(
    results: dict[Pair, list[tuple[Measurement, Measurement]]],
    peaks: dict[str, int],
    options: argparse.Namespace,
) -> list[str]:
    """Return the page's lines."""
    base = peaks["imports alone"]
    memory = [[case, peak, peak - base] for case, peak in peaks.items()]
    header = ["read", "ours, images/s", "torchvision", "ratio", "ours, CPU ms/image", "torchvision"]
    return [
        f"{options.count} images of 32 x 32 as one array ({options.count * 3072 >> 20} MiB), and "
        f"{options.files} JPEG files of 288 x 256 read at {SIDE}. Training: random crop with "
        f"padding 4 and mirror, batches of {BATCH} floats; workers augment what they read, as they "
        "do when training is on the CPU. Evaluation: in order, without augmentation, in batches of "
        f"{BATCH} and, as scores are computed, in chunks of {CHUNK}. "
        f"{options.threads} thread{'s' * (options.threads > 1)}; "
        f"{options.workers} worker processes (in chunks: threads) where it says so, beside as many "
        "worker processes of torchvision's.",
        "",
        f"Medians of {options.rounds} rounds, in which all take turns; a ratio is of two "
        "neighbours in a round, above 1 where ours is better, with its range. Processor time is "
        "that of the process and its workers.",
        "",
        *table([*header, "ratio"], rate_rows(results)),
        f"{options.workers} threads read chunks {thread_gain(results)} times as fast as none.",
        "",
        "Peak memory of one epoch in a fresh process with its workers, what they share counted "
        "once and libraries left out (PSS without files):",
        "",
        *table(["case", "peak memory, MiB", "above the imports, MiB"], memory),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="Markdown page to write")
    parser.add_argument("--count", type=int, default=50_000, help="images in memory, 32 x 32")
    parser.add_argument("--files", type=int, default=1_024, help="JPEG files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="rounds, of which medians count")
    parser.add_argument(
        "--folder", type=Path, help="where the files are written; a temporary folder by default"
    )
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if min(options.count, options.files) < BATCH:
        parser.error(f"--count and --files: at least one batch of {BATCH} is required")
    if options.case:
        run_case(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        write_files(options.folder, options.files)
        results = in_turns(Cases(options), options.rounds)
        peaks = {case: peak_of_case(case, options) for case in CASES}
    lines = report(results, peaks, options)
    if options.output:
        write_page(options.output, "Loaders: images a second, and memory", lines, "torchvision")
    else:
        print("\n".join(lines))


def run_case(options: argparse.Namespace) -> None:
    """Read one epoch of a case, for whoever watches this process."""
    if options.case != "imports alone":
        who, what, *workers = options.case.split(", ")
        measured(Cases(options).epoch(who, what, bool(workers)))


if __name__ == "__main__":
    main()
