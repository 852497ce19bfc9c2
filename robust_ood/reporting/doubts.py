"""Sanity warnings of a report: which numbers they cast doubt on, and those of seeds said once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from robust_ood.reporting.report_data import ReportData

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def is_doubted(data: ReportData, model: str, detector: str) -> bool:
    """Return whether a sanity warning is on a detector of a network, or of a recipe's checkpoint.

    Args:
        data: the results, also those whose rows are means over checkpoints.
        model: a network or a recipe.
        detector: its name in the results.
    """
    checkpoints = {**data.recipes, **data.checkpoints}
    prefixes = []
    for name in checkpoints.get(model, [model]):
        prefixes.append(f"{name}, {detector}:")
    return any(warning.startswith(tuple(prefixes)) for warning in data.results.warnings)


def warnings_of(data: ReportData) -> list[str]:
    """Return the sanity warnings, each once; what several checkpoints of a recipe share, joined.

    Five seeds say the same with five numbers: the joined warning has the range of each number.
    """
    recipes = {}
    for recipe, models in data.recipes.items():
        for model in models:
            recipes[model] = recipe
    # By recipe and wording; a network of no recipe shares its warnings with none.
    shared: dict[tuple[str, str], dict[str, str]] = {}
    for warning in data.results.warnings:
        model, comma, rest = warning.partition(", ")
        key = ("", warning)
        if comma and model in recipes:
            key = (recipes[model], _NUMBER.sub("#", rest))
        shared.setdefault(key, {}).setdefault(model, rest)
    lines = []
    for (recipe, wording), by_model in shared.items():
        if not recipe:
            lines.append(wording)
        elif len(by_model) == 1:
            ((model, rest),) = by_model.items()
            lines.append(f"{model}, {rest}")
        else:
            total = len(data.recipes[recipe])
            text = _with_ranges(list(by_model.values()))
            lines.append(f"{recipe} ({len(by_model)} of {total} checkpoints), {text}")
    return lines


def _with_ranges(texts: Sequence[str]) -> str:
    """Return texts that differ by their numbers alone as one, with the range of each number."""
    numbers = [_NUMBER.findall(text) for text in texts]
    ranges = []
    for values in zip(*numbers, strict=True):
        low = min(values, key=float)
        high = max(values, key=float)
        ranges.append(low if float(low) == float(high) else f"{low} to {high}")
    remaining = iter(ranges)
    return _NUMBER.sub(lambda _: next(remaining), texts[0])
