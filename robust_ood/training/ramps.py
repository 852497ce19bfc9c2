"""Settings that climb over a part of a run."""

from __future__ import annotations

from robust_ood.errors import UserError

Ramp = tuple[float, float]
"""Where a setting begins to climb from 0 and where it has its value, as shares of the run."""


def checked_ramp(name: str, ramp: Ramp) -> Ramp:
    """Return a ramp as two floats.

    Raises: `UserError` unless 0 <= start <= end <= 1.
    """
    if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1] <= 1:
        raise UserError(
            f"{name}: expected two shares of the run, 0 <= start <= end <= 1, got {list(ramp)}"
        )
    return float(ramp[0]), float(ramp[1])


def climbed(ramp: Ramp, progress: float) -> float:
    """Return which share of its value a setting has at a share of the run, in [0, 1]."""
    start, end = ramp
    if progress >= end:
        return 1.0
    if progress <= start:
        return 0.0
    return (progress - start) / (end - start)
