"""Choosing hyper-parameters on validation sets, and saying what every choice gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from robust_ood.arguments import require, typed
from robust_ood.detectors.contract import Detector
from robust_ood.detectors.fitting.image_keys import image_digests
from robust_ood.detectors.fitting.passes import as_floats, device_of, unpack
from robust_ood.errors import UserError, unknown_name
from robust_ood.metrics import auroc, fpr95
from robust_ood.modes import evaluating


class _Metric(NamedTuple):
    measure: Callable[[Tensor, Tensor], float]
    sign: int  # +1 where higher is better


_METRICS = {"auroc": _Metric(auroc, 1), "fpr95": _Metric(fpr95, -1)}

Scorer = Callable[[Detector, Tensor, Literal[1, -1]], Tensor]
"""A detector, images `(N, C, H, W)` in [0, 1] and their side (+1 inliers, -1 OOD) to scores."""


class Trial(NamedTuple):
    """One point of the grid and its value of the metric."""

    settings: dict[str, Any]
    value: float


class SearchResult(NamedTuple):
    """The outcome: the best detector and its settings, and all trials in the grid's order."""

    detector: Detector
    settings: dict[str, Any]
    value: float
    metric: str
    trials: list[Trial]

    def ordered(self) -> list[Trial]:
        """Return the trials, best first."""
        higher_first = _METRICS[self.metric].sign == 1
        return sorted(self.trials, key=lambda trial: trial.value, reverse=higher_first)

    def report(self) -> str:
        """Return the whole grid as a Markdown table, best point first."""
        names = list(self.settings)
        lines = [
            f"| {' | '.join(names)} | {self.metric} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for trial in self.ordered():
            settings = " | ".join(str(trial.settings[name]) for name in names)
            lines.append(f"| {settings} | {trial.value:.4f} |")
        return "\n".join(lines)


def clean_score(detector: Detector, images: Tensor, side: Literal[1, -1]) -> Tensor:
    """Return the detector's scores `(N,)` of the images as they are."""
    scores: Tensor = detector(images)
    return scores


@typed
def search(
    factory: Callable[..., Detector],
    grid: Mapping[str, Sequence[Any]],
    id_validation: Iterable[Any],
    ood_validation: Iterable[Any],
    *,
    metric: Literal["auroc", "fpr95"] = "auroc",
    test_sets: Iterable[Iterable[Any]] = (),
    scorer: Scorer = clean_score,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> SearchResult:
    """Try every point of a grid on validation images; return the best one, and the whole grid.

    Source: OpenOOD's search (AUROC on a small OOD validation set); ALOE's for the Mahalanobis
    magnitude ("fpr95").

    Args:
        factory: settings of one point, as keyword arguments, to a detector that is ready to score.
        grid: values to try by setting; all combinations are tried. `REGISTRY[name].ranges` has the
            papers' ranges.
        id_validation: batches of in-distribution images, as in `fit`; none that the test uses.
        ood_validation: batches of OOD images, likewise; of other data sets than the test's.
        metric: "auroc", higher is better, or "fpr95", lower is better.
        test_sets: batches of each test set. An image of theirs among the validation images is an
            error.
        scorer: how images are scored, for instance after an attack; as they are by default.
        on_trial: called after each point.

    Returns:
        A `SearchResult`. Among equal points, the first of the grid wins.

    Raises:
        UserError: an empty grid or setting, an unknown metric, no validation images, a validation
            image that is also a test image, or a grid of several points that all give the same
            value: then the settings do nothing, and choosing among them would hide it.
    """
    if metric not in _METRICS:
        raise unknown_name("metric", metric, _METRICS)
    for name, values in grid.items():
        require(f"grid.{name}", values, Sequence)
    if not grid or not all(len(values) for values in grid.values()):
        raise UserError(f"grid: {dict(grid)!r} holds no point to try")
    validation = {"id_validation": id_validation, "ood_validation": ood_validation}
    require_disjoint(validation, test_sets)
    measure, sign = _METRICS[metric]
    best: tuple[Detector, Trial] | None = None
    trials = []
    for values in product(*grid.values()):
        settings = dict(zip(grid, values, strict=True))
        detector = factory(**settings)
        id_scores = _scores(detector, id_validation, 1, "id_validation", scorer)
        ood_scores = _scores(detector, ood_validation, -1, "ood_validation", scorer)
        trial = Trial(settings, measure(id_scores, ood_scores))
        trials.append(trial)
        on_trial(trial)
        if best is None or sign * trial.value > sign * best[1].value:
            best = detector, trial
    if len(trials) > 1 and len({trial.value for trial in trials}) == 1:
        raise UserError(
            f"grid: all {len(trials)} points give {metric} {trials[0].value:.6f}; "
            f"no effect of {', '.join(grid)} here"
        )
    assert best is not None  # the grid has a point
    detector, trial = best
    return SearchResult(detector, trial.settings, trial.value, metric, trials)


def _scores(
    detector: Detector, loader: Iterable[Any], side: Literal[1, -1], field: str, scorer: Scorer
) -> Tensor:
    """Return the scores `(N,)` of all images of a loader, on the CPU."""
    scores = []
    with evaluating(detector), torch.no_grad():
        for batch in loader:
            images = as_floats(unpack(batch, field)[0].to(device_of(detector)))
            scores.append(scorer(detector, images, side).cpu())
    if not scores:
        raise UserError(
            f"{field}: gives no images; give a loader that can be iterated once for every point"
        )
    return torch.cat(scores)


def require_disjoint(
    validation: Mapping[str, Iterable[Any]], test_sets: Iterable[Iterable[Any]]
) -> None:
    """Raise `UserError`, naming the field, where a validation image is also a test image."""
    tests: set[bytes] = set()
    for loader in test_sets:
        if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
            kind = type(loader).__name__
            raise UserError(f"test_sets: expected loaders of batches, got a {kind}")
        for batch in loader:
            tests.update(image_digests(unpack(batch, "test_sets")[0]))
    if not tests:
        return
    for field, loader in validation.items():
        shared = 0
        for batch in loader:
            shared += sum(digest in tests for digest in image_digests(unpack(batch, field)[0]))
        if shared:
            raise UserError(
                f"{field}: {shared} of its images are in a test set; choose settings on others"
            )
