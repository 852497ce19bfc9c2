"""What a training run's folder says: its logged numbers, its speed, and its settings."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from robust_ood.errors import UserError
from robust_ood.names import from_spreadsheet
from robust_ood.texts import first_sentence

METRICS = "metrics.csv"
ALARM = "val/catastrophic_overfitting"
SPEED = "images_per_second"

Curve = list[tuple[int, float]]
"""Step and value, steps rising."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run as its folder has it.

    Args:
        name: of the folder.
        curves: what was logged, by name.
        epochs: begun.
        seconds: between the first and the last number that TensorBoard got, pauses between a kill
            and a continuation left out; NaN where it got none.
        config: the text of `config.yaml`; empty where there is none.
        checkpoints: names of its checkpoints.
    """

    name: str
    curves: dict[str, Curve]
    epochs: int
    seconds: float
    config: str
    checkpoints: list[str]

    def alarms(self) -> list[int]:
        """Return the steps whose validation saw catastrophic overfitting."""
        return [step for step, value in self.curves.get(ALARM, []) if value]


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a training run and no results of an evaluation."""
    return (folder / METRICS).is_file() and not (folder / "results.json").exists()


def read_run(folder: Path) -> TrainingRun:
    """Return what a run's folder says.

    Raises:
        UserError: no `metrics.csv`, a damaged one, or one without rows.
    """
    path = folder / METRICS
    if not path.is_file():
        raise UserError(
            f"results: {folder} has no {METRICS}; expected the folder of a training run"
        )
    try:
        rows = list(_rows(path))
    except (ValueError, OSError, csv.Error) as error:
        raise UserError(f"results: {path} is damaged ({first_sentence(error)})") from error
    if not rows:
        raise UserError(f"results: {path} has no rows yet; the run has logged nothing")
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("epoch", "step"):
                curves.setdefault(name, []).append((int(row["step"]), value))
    seconds, speed = _timed(folder)
    if speed:
        curves[SPEED] = speed
    config = folder / "config.yaml"
    return TrainingRun(
        folder.resolve().name,
        curves,
        1 + max(int(row["epoch"]) for row in rows),
        seconds,
        config.read_text(encoding="utf-8") if config.is_file() else "",
        sorted(found.name for found in folder.glob("*.ckpt")),
    )


def _rows(path: Path) -> Iterator[dict[str, float]]:
    """Yield the numbers of each row that are there."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        reader.fieldnames = list(map(from_spreadsheet, reader.fieldnames or ()))
        for row in reader:
            if None in row or not row.get("epoch") or not row.get("step"):
                raise ValueError(f"line {reader.line_num} does not fit the columns")
            numbers = {}
            for name, text in row.items():
                if text:
                    numbers[name] = float(text)
            yield numbers


def _timed(folder: Path) -> tuple[float, Curve]:
    """Return the seconds that a run took, and images per second by step, as TensorBoard got them.

    `metrics.csv` has no times, because a resumed run must write the same file again.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seconds = math.nan
    speeds: dict[int, float] = {}
    # One file for each start of the run; those of later starts replace what came after a kill.
    for path in sorted(folder.glob("events.out.tfevents.*"), key=_began):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        times = []
        for tag in events.Tags()["scalars"]:
            times += [event.wall_time for event in events.Scalars(tag)]
        if times:
            seconds = max(times) - min(times) + (0.0 if math.isnan(seconds) else seconds)
        if SPEED in events.Tags()["scalars"]:
            for event in events.Scalars(SPEED):
                speeds[event.step] = event.value
    return seconds, sorted(speeds.items())


def _began(path: Path) -> tuple[str, str]:
    """Return when a file of TensorBoard's was begun, as its name says, and that name."""
    return path.name.split(".")[3], path.name
