"""Reads `published.yaml`: the numbers that the papers print, and the names they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from robust_ood.regions import Fraction

_RADIUS_DIGITS = 6  # radii that agree to so many digits are equal


class ResultKey(NamedTuple):
    """What a number belongs to, in a paper's names; detector and ood are "" for an accuracy.

    attacked: "none", "in", "out" or "both". norm, radius: "none" and 0 without attack.
    """

    network: str
    detector: str
    id: str
    ood: str
    attacked: str
    norm: str
    radius: float


class PublishedResult(NamedTuple):
    """The numbers that one table of a paper prints for one key: fractions by metric.

    sets: the members of a group, in words. steps: of the attack, where the table's are known.
    """

    paper: str
    table: int
    key: ResultKey
    values: dict[str, float]
    sets: str
    steps: int | None


class Paper(NamedTuple):
    """A paper. protocol: sentences on how its numbers were made."""

    title: str
    protocol: list[str]


@cache
def content() -> dict[str, Any]:
    """Return what `published.yaml` holds."""
    path = files("robust_ood.reporting.papers").joinpath("published.yaml")
    entries: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


def paper(name: str) -> Paper:
    """Return what is known of a paper that `published.yaml` names."""
    return Paper(**content()["papers"][name])


@cache
def published_results() -> tuple[PublishedResult, ...]:
    """Return everything that the papers print, table by table."""
    results: list[PublishedResult] = []
    for table in content()["tables"]:
        results += _of_table(table)
    return tuple(results)


def recognised(name: str, kind: str) -> str:
    """Return the papers' name for a network or an image set, "" where they have none.

    Args:
        name: as in the results, such as `cifar10_test` or `aloe-2`; underscores, slashes, dots and
            spaces separate its words, and the number of a checkpoint after a hyphen is ignored.
        kind: "sets" or "networks".
    """
    words = set()
    for word in re.split(r"[_/. ]", name.lower()):
        words.add(re.sub(r"-\d+$", "", word))
    for paper_name, aliases in content()[kind].items():
        if words & set(aliases):
            return str(paper_name)
    return ""


def rounded_radius(radius: float) -> float:
    """Return a radius to the digits by which two radii are compared."""
    return round(radius, _RADIUS_DIGITS)


def _of_table(table: Mapping[str, Any]) -> Iterator[PublishedResult]:
    columns = [{**table, **column} for column in table["columns"]]
    for network, detector, *numbers in table["rows"]:
        # A row has one result for each key; a key can have several metrics, one in each column.
        metrics: dict[tuple[ResultKey, str, int | None], dict[str, float]] = {}
        for column, number in zip(columns, numbers, strict=True):
            key = _key(network, _of_temperature(detector, column), column)
            steps = None
            if key.attacked != "none":
                steps = column.get("steps")
            values = metrics.setdefault((key, column.get("sets", ""), steps), {})
            values[column["metric"]] = number / column.get("unit", 100)
        for (key, sets, steps), values in metrics.items():
            yield PublishedResult(table["paper"], table["table"], key, values, sets, steps)


def _of_temperature(detector: str, column: Mapping[str, Any]) -> str:
    """Return the detector, with its temperature where the columns of a table differ by it."""
    if "temperature" not in column:
        return detector
    return f"{detector}, temperature {column['temperature']}"


def _key(network: str, detector: str, column: Mapping[str, Any]) -> ResultKey:
    attacked = column["attacked"]
    norm = "none"
    radius = 0.0
    if attacked != "none":
        norm = column["norm"]
        radius = rounded_radius(Fraction(column["radius"]))
    return ResultKey(network, detector, column["id"], column.get("ood", ""), attacked, norm, radius)
