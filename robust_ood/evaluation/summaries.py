"""Mean and deviation over the checkpoints of a recipe."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from robust_ood.evaluation.results import METRICS, Accuracy, Row, Summary

_SHARED = (
    "detector",
    "attack",
    "attacked",
    "norm",
    "radius",
    "steps",
    "restarts",
    "id",
    "ood",
    "group",
)


def summarise(
    rows: Sequence[Row], accuracies: Sequence[Accuracy], recipes: Mapping[str, Sequence[str]]
) -> list[Summary]:
    """Return mean and sample standard deviation over the models of each recipe with several."""
    records: list[Summary] = []
    for recipe, models in recipes.items():
        if len(models) > 1:
            records += _summaries(recipe, models, rows, METRICS)
            records += _summaries(recipe, models, accuracies, ("accuracy",))
    return records


def _summaries(
    recipe: str,
    models: Sequence[str],
    records: Sequence[Row | Accuracy],
    metrics: Sequence[str],
) -> Iterator[Summary]:
    of_recipe = [record for record in records if record.model in models]
    for shared, members in _alike(of_recipe).items():
        if len(members) < len(models):
            continue
        mean = {}
        std = {}
        for name in metrics:
            values = [getattr(member, name) for member in members]
            mean[name] = statistics.fmean(values)
            std[name] = statistics.stdev(values)
        fields: dict[str, Any] = dict(zip(_SHARED, shared, strict=False))
        yield Summary(recipe=recipe, models=tuple(models), mean=mean, std=std, **fields)


def _alike(records: Sequence[Row | Accuracy]) -> dict[tuple[Any, ...], list[Row | Accuracy]]:
    """Return records by all that models have in common.

    A group's mean may look like the row of a set that has the group's name; which of a model's rows
    it is tells them apart.
    """
    groups: dict[tuple[Any, ...], list[Row | Accuracy]] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    for record in records:
        fields = asdict(record)
        shared = tuple(map(fields.get, _SHARED))
        groups.setdefault((*shared, seen[record.model, shared]), []).append(record)
        seen[record.model, shared] += 1
    return groups
