"""AUROC as a function of the size of the perturbation, read off the traces of attacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.arguments import require, typed
from robust_ood.attacks import PGD, Attack, LowResolution
from robust_ood.attacks.objectives import Direction
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.inputs import checked
from robust_ood.metrics import auroc
from robust_ood.modes import evaluating, ordinary
from robust_ood.perturb import minimize

Norm = Literal["Linf", "L2"]


class ScoreTrace(NamedTuple):
    """True scores and sizes of the perturbation along an attack, `(steps + 1, N)`.

    Row 0 is clean.
    """

    scores: Tensor
    linf: Tensor
    l2: Tensor

    def sizes(self, norm: Norm) -> Tensor:
        """Return the sizes in a norm."""
        return self.linf if norm == "Linf" else self.l2


class Curve(NamedTuple):
    """AUROC at each size of the perturbation."""

    sizes: list[float]
    aurocs: list[float]


@typed
def trace(
    detector: Detector, images: Tensor, attack: PGD | LowResolution, direction: Direction
) -> ScoreTrace:
    """Return the true scores along one run of an attack from the clean images.

    Source: Fort 2022, Sec. 3.1. The attack's random start and restarts are left out, so that the
    run begins at size 0.

    Args:
        detector: the detector attacked, or an ensemble of detectors as one.
        images: `(N, C, H, W)` in [0, 1].
        attack: region, steps, step size and rule. Of a `LowResolution`, the sizes are those of the
            small perturbation, as in Fort's Sec. 3.4.
        direction: +1 lowers scores (inliers), -1 raises them (outliers).

    Raises:
        UserError: a `LowResolution` of another attack than PGD.
    """
    scores: list[Tensor] = []
    if isinstance(attack, LowResolution):
        detector, images = attack.at_low_resolution(detector, images)
        attack = _gradient_steps(attack.attack)

    def judge(x: Tensor) -> Tensor:
        scores.append(detector(x))
        return direction * scores[-1]

    with evaluating(detector):
        run = minimize(
            lambda x: direction * detector.surrogate(x),
            ordinary(checked(images)),
            attack.region,
            steps=attack.steps,
            step_size=attack.step_size,
            rule=attack.rule,
            judge=judge,
            trace=True,
        )
    assert run.trace is not None
    return ScoreTrace(torch.stack(scores), run.trace.linf, run.trace.l2)


def _gradient_steps(attack: Attack) -> PGD:
    """Return the attack that a `LowResolution` makes; only PGD's steps can be followed."""
    if not isinstance(attack, PGD):
        raise UserError(f"attack: expected PGD at the low resolution, got {type(attack).__name__}")
    return attack


@typed
def scores_at(run: ScoreTrace, size: float, norm: Norm = "Linf") -> Tensor:
    """Return each image's score at a size of the perturbation, `(N,)`, interpolated linearly.

    Source: Fort 2022, Sec. 3.1: each image has an interpolation of its own. Where the size does not
    grow from one step to the next, the later step is placed no lower than the earlier one; beyond
    an image's last size its last score stays.
    """
    # Both (steps + 1, N); np.interp needs sizes that do not fall.
    sizes = run.sizes(norm).cummax(0).values.double().cpu().numpy()
    scores = run.scores.double().cpu().numpy()
    values = []
    for image in range(sizes.shape[1]):  # columns, (steps + 1,) each
        values.append(_interpolate(size, sizes[:, image], scores[:, image]))
    return torch.tensor(values, dtype=torch.float64)


def _interpolate(size: float, sizes: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    # Of several steps of one size, the last is where the attack stood.
    last = np.append(sizes[1:] > sizes[:-1], True)
    return float(np.interp(size, sizes[last], scores[last]))


@typed
def curve(
    inliers: ScoreTrace | Tensor,
    outliers: ScoreTrace | Tensor,
    sizes: Sequence[float],
    norm: Norm = "Linf",
) -> Curve:
    """Return the AUROC at each size of the perturbation.

    A tensor of scores `(N,)` stands for a side left clean.

    Raises:
        UserError: a negative size, or no trace at all.
    """
    if any(size < 0 for size in sizes):
        raise UserError(f"sizes: {min(sizes)} is negative")
    if not isinstance(inliers, ScoreTrace) and not isinstance(outliers, ScoreTrace):
        raise UserError(
            "inliers, outliers: neither is a trace of an attack, so there is nothing to vary"
        )
    aurocs = []
    for size in sizes:
        aurocs.append(auroc(_side(inliers, size, norm), _side(outliers, size, norm)))
    return Curve(list(sizes), aurocs)


@typed
def loss_of_auroc(
    inliers: ScoreTrace | Tensor,
    outliers: ScoreTrace | Tensor,
    size: float = 1 / 255,
    norm: Norm = "Linf",
) -> tuple[float, float, float]:
    """Return the AUROC before, the AUROC at a size of the perturbation, and their difference.

    Source: Fort 2022, Tables 1 to 5, at 1/255 in Linf. The difference is <= 0 where it hurts. A
    tensor of scores `(N,)` stands for a side left clean.
    """
    before, after = curve(inliers, outliers, [0.0, size], norm).aurocs
    return before, after, after - before


@typed
def concatenate(runs: Iterable[ScoreTrace]) -> ScoreTrace:
    """Return the traces of several batches as one.

    Raises: `UserError` for none, or for anything but traces.
    """
    scores = []
    linf = []
    l2 = []
    for run in runs:
        require("runs", run, ScoreTrace)
        scores.append(run.scores)
        linf.append(run.linf)
        l2.append(run.l2)
    if not scores:
        raise UserError("runs: expected one or more traces, got none")
    # (steps + 1, n) each, to (steps + 1, N)
    return ScoreTrace(torch.cat(scores, dim=1), torch.cat(linf, dim=1), torch.cat(l2, dim=1))


def _side(side: ScoreTrace | Tensor, size: float, norm: Norm) -> Tensor:
    if isinstance(side, ScoreTrace):
        return scores_at(side, size, norm)
    return side.double()
