"""Contestants that are timed in turns, so that what slows the machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Contestants = Mapping[str, Callable[[], object]]
CLOCK = (
    "processor time"
    if torch.get_num_threads() == 1 and not torch.cuda.is_available()
    else "wall time"
)


def now() -> float:
    """Return processor seconds for one CPU thread (others hardly disturb it), else wall time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if CLOCK == "processor time" else time.perf_counter()


def interleaved(contestants: Contestants, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each in each round, after a warm-up; the order rotates."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = now()
            contestants[name]()
            if turn:
                seconds[name].append(now() - begin)
    return seconds


def ratio(seconds: Sequence[float], others: Sequence[float]) -> str:
    """Return the median, over the rounds, of the ratio of two durations, and its range."""
    ratios = [own / other for own, other in zip(seconds, others, strict=True)]
    return f"{typical(seconds, others):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def typical(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over the rounds of how many times as long something took as another."""
    return statistics.median(own / other for own, other in zip(seconds, others, strict=True))
