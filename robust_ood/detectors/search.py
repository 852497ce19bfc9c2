"""Choosing hyper-parameters on validation sets, and saying what every choice gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from robust_ood.detectors.contract import Detector
from robust_ood.detectors.fitting.image_keys import image_digests
from robust_ood.detectors.fitting.passes import as_floats, device_of, unpack
from robust_ood.errors import UserError, unknown_name
from robust_ood.metrics import auroc, fpr95
from robust_ood.modes import evaluating

_METRICS: dict[str, tuple[Callable[[Tensor, Tensor], float], int]] = {
    "auroc": (auroc, 1),
    "fpr95": (fpr95, -1),
}


class Trial(NamedTuple):
    """One point of the grid and its value of the metric."""

    settings: dict[str, Any]
    value: float


class Found(NamedTuple):
    """The outcome of a search: the best detector and its settings, and all trials in the grid's
    order.
    """

    detector: Detector
    settings: dict[str, Any]
    value: float
    metric: str
    trials: list[Trial]

    def report(self) -> str:
        """Return the whole grid as a Markdown table, best point first."""
        ordered = sorted(
            self.trials, key=lambda trial: trial.value, reverse=_METRICS[self.metric][1] == 1
        )
        names = list(self.settings)
        lines = [f"| {' | '.join(names)} | {self.metric} |", "|---" * (len(names) + 1) + "|"]
        lines += [
            f"| {' | '.join(str(trial.settings[name]) for name in names)} | {trial.value:.4f} |"
            for trial in ordered
        ]
        return "\n".join(lines)


def search(
    factory: Callable[..., Detector],
    grid: Mapping[str, Sequence[Any]],
    id_validation: Iterable[Any],
    ood_validation: Iterable[Any],
    *,
    metric: Literal["auroc", "fpr95"] = "auroc",
    test_sets: Iterable[Iterable[Any]] = (),
) -> Found:
    """Try every point of a grid on validation images and return the best one, and the whole grid.

    Source: OpenOOD's search (AUROC on a small OOD validation set); ALOE's for the Mahalanobis
    magnitude ("fpr95").

    Args:
        factory: settings of one point, as keyword arguments, to a detector that is ready to score.
        grid: values to try by setting; all combinations are tried. `REGISTRY[name].grid` has the
            papers' ranges.
        id_validation: batches of in-distribution images, as in `fit`; none that the test uses.
        ood_validation: batches of OOD images, likewise; of other data sets than the test's.
        metric: "auroc", higher is better, or "fpr95", lower is better.
        test_sets: batches of each test set. An image of theirs among the validation images is an
            error.

    Returns:
        A `Found`. Among equal points, the first of the grid wins.

    Raises:
        UserError: an empty grid or setting, an unknown metric, no validation images, a validation
            image that is also a
            test image, or a grid of several points that all give the same value: then the settings
            do nothing, and choosing among them would hide it.
    """
    if metric not in _METRICS:
        raise unknown_name("metric", metric, _METRICS)
    if not grid or not all(len(values) for values in grid.values()):
        raise UserError(f"grid: {dict(grid)!r} holds no point to try")
    _require_disjoint({"id_validation": id_validation, "ood_validation": ood_validation}, test_sets)
    measure, sign = _METRICS[metric]
    best: tuple[Detector, Trial] | None = None
    trials = []
    for values in product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        detector = factory(**settings)
        inside, outside = (
            scores(detector, id_validation, "id_validation"),
            scores(detector, ood_validation, "ood_validation"),
        )
        trials.append(Trial(settings, measure(inside, outside)))
        if best is None or sign * trials[-1].value > sign * best[1].value:
            best = detector, trials[-1]
    if len(trials) > 1 and len({trial.value for trial in trials}) == 1:
        raise UserError(
            f"grid: all {len(trials)} points give {metric} {trials[0].value:.6f}; {', '.join(grid)} do nothing here"
        )
    assert best is not None  # the grid has a point
    return Found(best[0], best[1].settings, best[1].value, metric, trials)


def scores(detector: Detector, loader: Iterable[Any], field: str = "loader") -> Tensor:
    """Return the scores `(N,)` of all images of a loader, on the CPU.

    Raises: `UserError` for a loader without images, naming `field`.
    """
    parts = []
    with evaluating(detector), torch.no_grad():
        for batch in loader:
            parts.append(detector(as_floats(unpack(batch)[0].to(device_of(detector)))).cpu())
    if not parts:
        raise UserError(
            f"{field}: gives no images (one that can be iterated once for every point is wanted)"
        )
    return torch.cat(parts)


def _require_disjoint(
    validation: Mapping[str, Iterable[Any]], test_sets: Iterable[Iterable[Any]]
) -> None:
    tests = {
        digest
        for loader in test_sets
        for batch in loader
        for digest in image_digests(unpack(batch)[0])
    }
    if not tests:
        return
    for field, loader in validation.items():
        shared = sum(
            digest in tests for batch in loader for digest in image_digests(unpack(batch)[0])
        )
        if shared:
            raise UserError(
                f"{field}: {shared} of its images are in a test set; choose settings on other images"
            )
