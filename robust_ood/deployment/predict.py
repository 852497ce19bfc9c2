"""A guard's decisions on image files: one record each, in order, unreadable ones named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.data.sources.files import SUFFIXES, decode
from robust_ood.deployment.guard import Decision, Guard
from robust_ood.errors import UserError
from robust_ood.randomness import generator
from robust_ood.texts import first_sentence, printable

FIELDS = (
    "image",
    "class",
    "class_index",
    "confidence",
    "score",
    "threshold",
    "distance",
    "accepted",
    "rank",
    "error",
)
"""The columns of a CSV file."""
# What Pillow raises on files that are damaged or that it does not know.
_DAMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_TRIALS = 20


@typed
def find_images(paths: Sequence[Path | str]) -> list[Path]:
    """Return image files: those that are named, and those in folders and below, sorted.

    Raises: `UserError` for a path that is not there, and where there is no image at all.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            inside = []
            for file in path.rglob("*"):
                if file.suffix.lower() in SUFFIXES and file.is_file():
                    inside.append(file)
            found += sorted(inside)
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"images: no such file or folder: {path}")
    if not found:
        kinds = " ".join(sorted(SUFFIXES))
        raise UserError(f"images: no image in {', '.join(map(str, paths))}; accepted: {kinds}")
    return found


@typed
def predict_files(
    guard: Guard, paths: Sequence[Path | str], batch_size: int = 64
) -> Iterator[dict[str, Any]]:
    """Yield what a guard says of image files, in order.

    Args:
        guard: the guard.
        paths: files, and folders whose images are taken, also those in folders inside.
        batch_size: how many images are scored at a time; decisions do not depend on it.

    A record has `image`, `class`, `class_index`, `confidence` (of the class, in [0, 1]), `score`,
    `threshold`, `distance` (score minus threshold, >= 0 where accepted), `accepted`, and `rank`
    (the share of the calibration images that score lower); of a file that cannot be read it has
    `image` and `error`.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: expected a number of images >= 1, got {batch_size}")
    guard.description.preprocessing.form  # noqa: B018  # refuses oblong networks before any file
    remaining = iter(find_images(paths))
    while batch := list(islice(remaining, batch_size)):
        yield from _predict_batch(guard, batch)


def records(guard: Guard, decision: Decision) -> list[dict[str, Any]]:
    """Return a batch's decisions as plain values, one record for each image."""
    threshold = float(guard.threshold)
    listed = []
    columns = zip(
        decision.scores.tolist(),
        decision.accepted.tolist(),
        decision.classes.tolist(),
        decision.confidence.tolist(),
        guard.ranks(decision.scores).tolist(),
        strict=True,
    )
    for score, accepted, index, confidence, rank in columns:
        listed.append(
            {
                "class": guard.class_name(index),
                "class_index": index,
                "confidence": confidence,
                "score": score,
                "threshold": threshold,
                "distance": score - threshold,
                "accepted": accepted,
                "rank": rank,
            }
        )
    return listed


def in_words(guard: Guard, record: Mapping[str, Any]) -> str:
    """Return a decision as a sentence that compares the image with those of calibration."""
    count = guard.description.threshold.images
    verdict = "accepted" if record["accepted"] else "rejected"
    share = f"{100 * record['rank']:.1f} % of the {count} calibration images score lower"
    side = "above" if record["accepted"] else "below"
    return (
        f"{verdict}: score {record['score']:.4g}, {abs(record['distance']):.4g} {side} the "
        f"threshold; {share}"
    )


def time_guard(guard: Guard) -> str:
    """Return in a line what an image costs, alone and in batches, in milliseconds."""
    costs = []
    for count in (1, 32):
        shape = (count, *guard.description.preprocessing.input_shape)
        images = torch.rand(shape, generator=generator(0, "benchmark"))
        seconds = _seconds(partial(guard, images))
        costs.append(1000 * seconds / count)
    return (
        f"{guard.description.label}: {costs[0]:.2f} ms for one image alone, {costs[1]:.2f} ms each "
        f"in batches of 32, on {guard.threshold.device} with {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}"
    )


def _predict_batch(guard: Guard, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    pixels: list[Tensor] = []
    reasons: dict[int, str] = {}
    for position, path in enumerate(paths):
        try:
            pixels.append(_read(guard, path))
        except _DAMAGE as error:
            reasons[position] = first_sentence(error)
    decided: Iterator[dict[str, Any]] = iter(())
    if pixels:
        decided = iter(records(guard, guard(torch.stack(pixels))))
    for position, path in enumerate(paths):
        image = printable(str(path))
        if position in reasons:
            yield {"image": image, "error": printable(reasons[position])}
        else:
            yield {"image": image, **next(decided)}


def _read(guard: Guard, path: Path) -> Tensor:
    """Return an image file as the network's size, uint8 `(C, H, W)`."""
    preprocessing = guard.description.preprocessing
    return preprocessing.pixels(decode(path, preprocessing.bits))


def _seconds(work: Callable[[], Any]) -> float:
    """Return the median time of a call, in seconds."""
    work()
    times = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
