"""What the papers print, and which results are of the same thing.

`published.yaml` has the numbers, and the words by which networks and image sets are recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from robust_ood.evaluation import Accuracy, Row
from robust_ood.regions import Fraction
from robust_ood.reporting.source import Source

_DIGITS = 6  # to which two radii are the same


class Setting(NamedTuple):
    """What a number belongs to, as a paper names it; detector "" and ood "" for the accuracy of a
    classifier.

    attacked: "none", "in", "out" or "both". norm, radius: "none" and 0 without attack.
    """

    network: str
    detector: str
    id: str
    ood: str
    attacked: str
    norm: str
    radius: float


class Printed(NamedTuple):
    """The numbers of one table of a paper that belong to one setting: fractions by metric.

    sets: the members of a group, in words. steps: of the attack, where the table's are known.
    """

    paper: str
    table: int
    setting: Setting
    values: dict[str, float]
    sets: str
    steps: int | None


class Pair(NamedTuple):
    """Printed numbers and the measured row of the same setting."""

    printed: Printed
    row: Row | Accuracy


@cache
def content() -> dict[str, Any]:
    """Return what `published.yaml` holds."""
    text = files("robust_ood.reporting").joinpath("published.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@cache
def printed() -> tuple[Printed, ...]:
    """Return everything that the papers print, table by table."""
    return tuple(one for table in content()["tables"] for one in _of_table(table))


def pairs(source: Source) -> list[Pair]:
    """Return the printed numbers to which rows of a report correspond, in the papers' order.

    A row corresponds where network, detector, in-distribution, OOD set (or group of sets), attacked
    side, norm and radius are the same; what else may differ is for `comparison` to say.
    """
    measured: dict[Setting, list[Row | Accuracy]] = {}
    for setting, row in _settings(source):
        measured.setdefault(setting, []).append(row)
    return [Pair(one, row) for one in printed() for row in measured.get(one.setting, ())]


def recognised(name: str, kind: str) -> str:
    """Return what the papers call the thing of this name, or "" where they have no such thing.

    Args:
        name: as results have it, such as `cifar10_test` or `aloe-2`; words stand between
            underscores, slashes, dots and blanks, and the number of a checkpoint behind a hyphen
            does not count.
        kind: "sets" or "networks".
    """
    words = {re.sub(r"-\d+$", "", word) for word in re.split(r"[_/. ]", name.lower())}
    return next((paper for paper, known in content()[kind].items() if words & set(known)), "")


def _of_table(table: Mapping[str, Any]) -> Iterator[Printed]:
    columns = [{**table, **column} for column in table["columns"]]
    for network, detector, *numbers in table["rows"]:
        found: dict[tuple[Setting, str, int | None], dict[str, float]] = {}
        for column, number in zip(columns, numbers, strict=True):
            clean = column["attacked"] == "none"
            budget = (
                ("none", 0.0)
                if clean
                else (column["norm"], round(Fraction(column["radius"]), _DIGITS))
            )
            setting = Setting(
                network, detector, column["id"], column.get("ood", ""), column["attacked"], *budget
            )
            key = (setting, column.get("sets", ""), None if clean else column.get("steps"))
            found.setdefault(key, {})[column["metric"]] = number / column.get("unit", 100)
        for (setting, sets, steps), values in found.items():
            yield Printed(table["paper"], table["table"], setting, values, sets, steps)


def _settings(source: Source) -> Iterator[tuple[Setting, Row | Accuracy]]:
    """Yield the rows of networks and sets that the papers know, with what they are of."""
    for row in source.sets:
        yield _setting(row, row.detector, recognised(row.ood, "sets"), row.attacked), row
    for row in source.means:
        yield _setting(row, row.detector, row.group, row.attacked), row
    for one in source.results.classification:
        yield _setting(one, "", "", "none" if one.attack == "none" else "in"), one


def _setting(row: Row | Accuracy, detector: str, ood: str, attacked: str) -> Setting:
    norm, radius = ("none", 0.0) if attacked == "none" else (row.norm, round(row.radius, _DIGITS))
    return Setting(
        recognised(row.model, "networks"),
        detector,
        recognised(row.id, "sets"),
        ood,
        attacked,
        norm,
        radius,
    )
