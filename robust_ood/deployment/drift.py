"""Drift: does a stream's scores still have the distribution of the calibration images?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.texts import shown

LEAST = 20
"""How many images can be compared at all."""
_LONGEST_LINE = 2**20
"""Characters of a log's line that are read; more is no line of ours."""


@dataclass(frozen=True)
class Window:
    """A window of a stream, compared with calibration.

    Args:
        start: the place of its first image in the stream, from 0.
        count: how many images it has.
        p_value: of the two-sample Kolmogorov-Smirnov test, in [0, 1].
        distance: the largest between the two distribution functions, in [0, 1].
        lower: whether the stream's scores are the lower ones where that distance is.
        rejected: share of the window's images below the threshold, in [0, 1].
        drifted: whether the p-value is below the level of a window.
    """

    start: int
    count: int
    p_value: float
    distance: float
    lower: bool
    rejected: float
    drifted: bool


@dataclass(frozen=True)
class Drift:
    """What a stream's windows say.

    Args:
        windows: in order.
        false_alarm: with at most this probability any window of an unchanged stream drifts.
        level: what a window's p-value is compared with.
        images: how many images the stream has.
    """

    windows: tuple[Window, ...]
    false_alarm: float
    level: float
    images: int

    @property
    def drifted(self) -> bool:
        """Whether any window's scores differ from those of calibration."""
        return any(window.drifted for window in self.windows)

    def in_words(self) -> str:
        """Return the outcome as a sentence."""
        alarm = f"false-alarm probability at most {self.false_alarm:g} for the whole log"
        count = len(self.windows)
        for window in self.windows:
            if window.drifted:
                side = "lower" if window.lower else "higher"
                last = window.start + window.count
                return (
                    f"drift: in images {window.start + 1} to {last} scores are {side} than at "
                    f"calibration (KS distance {window.distance:.3f}, p = {window.p_value:.2g}; "
                    f"{alarm})"
                )
        return (
            f"no drift in {self.images} images, {count} window(s): the scores are compatible with "
            f"those of calibration ({alarm})"
        )


@typed
def watch(
    calibration: Sequence[float] | Any,
    scores: Sequence[float] | Any,
    threshold: float,
    *,
    window: int = 200,
    false_alarm: float = 0.01,
) -> Drift:
    """Compare a stream's scores with those of calibration, window by window.

    Each window is tested by the exact two-sample Kolmogorov-Smirnov test, which counts the
    calibration images as the sample that they are. A window drifts where its p-value is at most
    `false_alarm` over the number of windows; so, for exchangeable images, any of them does with at
    most the probability `false_alarm` (Bonferroni, which dependence of the windows does not hurt).

    Args:
        calibration: scores `(M,)` of the calibration images.
        scores: of the stream `(N,)`, in order; the last window has up to twice as many images.
        threshold: of the guard.
        window: how many images are tested together, >= 20.
        false_alarm: in (0, 1).

    Raises: `UserError` for a window or stream of fewer images than 20, or scores that are NaN.
    """
    if window < LEAST:
        raise UserError(f"window: expected a number of images >= {LEAST}, got {window}")
    if not 0 < false_alarm < 1:
        raise UserError(f"false_alarm: expected a probability in (0, 1), got {false_alarm:g}")
    known = np.sort(_as_scores("calibration", calibration))
    stream = _as_scores("scores", scores)
    count = max(1, len(stream) // window)
    level = false_alarm / count
    windows = []
    for index in range(count):
        start = index * window
        stop = len(stream) if index == count - 1 else start + window
        windows.append(_tested(known, stream[start:stop], start, threshold, level))
    return Drift(tuple(windows), false_alarm, level, len(stream))


def _as_scores(field: str, values: Any) -> NDArray[np.float64]:
    """Return finite scores `(N,)`, of enough images to compare."""
    try:
        scores = np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise UserError(f"{field}: expected numbers (N,), got {shown(values)}") from error
    if len(scores) < LEAST:
        raise UserError(
            f"{field}: expected the scores of at least {LEAST} images, got {len(scores)}"
        )
    if not np.isfinite(scores).all():
        raise UserError(f"{field}: expected finite scores, got NaN or infinity")
    return scores


@typed
def read_log(path: Path) -> list[float]:
    """Return the scores of the JSON lines that `predict --json` or `serve --log` wrote.

    Lines of images that could not be read have no score, and are left out; so is a last line that a
    running service has not finished.

    Raises: `UserError` naming the first line that is none of ours.
    """
    scores = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                score = _score_of(line, f"{path}, line {number}")
                if score is not None:
                    scores.append(score)
    except FileNotFoundError as error:
        raise UserError(f"log: no such file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"log: {path} cannot be read as text lines") from error
    return scores


def draw(drift: Drift, calibration: NDArray[Any], scores: Iterable[float], path: Path,
         threshold: float) -> None:  # fmt: skip
    """Write a picture: the stream's scores over time, and both distribution functions.

    Args:
        drift: of the stream.
        calibration: scores `(M,)`.
        scores: of the stream, `(N,)`.
        path: of the picture, PNG or SVG.
        threshold: of the guard.

    Raises: `UserError` where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("plot: needs matplotlib; pip install 'robust-ood[report]'") from error
    stream = np.asarray(list(scores))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    over_time, distribution = figure.subplots(1, 2, width_ratios=(2, 1))
    over_time.plot(np.arange(1, len(stream) + 1), stream, ".", markersize=2, color="#0067a9")
    over_time.axhline(threshold, color="#5f6776", linewidth=1, label="threshold")
    for window in drift.windows:
        if window.drifted:
            last = window.start + window.count
            over_time.axvspan(window.start + 1, last, color="#c84f19", alpha=0.2, linewidth=0)
    over_time.set_xlabel("image of the stream")
    over_time.set_ylabel("score")
    over_time.legend(loc="lower left", frameon=False)
    for name, values in (("calibration", calibration), ("stream", stream)):
        ordered = np.sort(values)
        shares = np.arange(1, len(ordered) + 1) / len(ordered)
        distribution.step(ordered, shares, where="post", label=name)
    distribution.set_xlabel("score")
    distribution.set_ylabel("share of images at most")
    distribution.legend(frameon=False)
    verdict = "drift" if drift.drifted else "no drift"
    figure.suptitle(f"{verdict}; windows in colour differ (false alarm <= {drift.false_alarm:g})")
    figure.savefig(path, dpi=120, format=path.suffix.lstrip(".").lower() or "png")


def _tested(
    known: NDArray[Any], scores: NDArray[Any], start: int, threshold: float, level: float
) -> Window:
    result = ks_2samp(known, scores)
    # At the location of the distance, the stream's function is above where its scores are lower.
    lower = bool(result.statistic_sign < 0)
    return Window(
        start,
        len(scores),
        float(result.pvalue),
        float(result.statistic),
        lower,
        float((scores < threshold).mean()),
        bool(result.pvalue <= level),
    )


def _score_of(line: str, place: str) -> float | None:
    """Return the score of a log's line; None for a line without one."""
    if not line.strip():
        return None
    problem = UserError(f"log: {place} is no JSON line with a score, as predict and serve write it")
    if len(line) > _LONGEST_LINE:
        raise problem
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.endswith("\n"):  # being written
            return None
        raise problem from error
    if isinstance(record, dict) and "error" in record:
        return None
    score = record.get("score") if isinstance(record, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise problem
    return float(score)
