"""Results: records by the published schema, written all at once or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from robust_ood.errors import UserError
from robust_ood.writing import replace_file

SCHEMA = 1
T = TypeVar("T")
METRICS = (
    "auroc",
    "aupr_in",
    "aupr_out",
    "fpr95",
    "fpr95_ood_positive",
    "detection_error",
    "tpr_deployed",
    "fpr_deployed",
)


@dataclass(frozen=True)
class Row:
    """One detector against one attack on one OOD set: rates in [0, 1].

    `robust_ood.metrics` defines the rates. attacked: which images the attack changed, "none", "in",
    "out" or "both". ood: the set, or "near" / "far" for the mean over a group. fpr95: share of OOD
    accepted when 95 % of ID is accepted. fpr95_ood_positive: share of ID rejected when 95 % of OOD
    is rejected. tpr_deployed, fpr_deployed: shares of ID and OOD accepted at the threshold that
    accepts 95 % of the *clean* ID. seconds: what computing the scores took, whenever that was.
    """

    model: str
    detector: str
    attack: str
    attacked: str
    norm: str
    radius: float
    steps: int
    restarts: int
    id: str
    ood: str
    group: str
    n_id: int
    n_ood: int
    auroc: float
    aupr_in: float
    aupr_out: float
    fpr95: float
    fpr95_ood_positive: float
    detection_error: float
    tpr_deployed: float
    fpr_deployed: float
    seconds: float


@dataclass(frozen=True)
class Accuracy:
    """Classification accuracy, in [0, 1], clean (attack "none") or under an attack."""

    model: str
    id: str
    attack: str
    norm: str
    radius: float
    steps: int
    restarts: int
    n: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Interval:
    """Bootstrap percentile intervals `(low, high)` of one row; means over groups have none."""

    model: str
    detector: str
    attack: str
    attacked: str
    id: str
    ood: str
    group: str
    level: float
    samples: int
    auroc: tuple[float, float]
    fpr95: tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of rows over the checkpoints of one recipe.

    recipe: its name; its models are those that `models` names. Other fields as in `Row`; of
    accuracies `detector`, `ood` and `group` are None and the one metric is "accuracy".
    """

    recipe: str
    models: tuple[str, ...]
    detector: str | None
    attack: str
    attacked: str | None
    norm: str
    radius: float
    steps: int
    restarts: int
    id: str
    ood: str | None
    group: str | None
    mean: dict[str, float]
    std: dict[str, float]


@dataclass(frozen=True)
class Wins:
    """How many images of a set each member of an attack won: whose candidate was kept.

    wins: "clean" is the image itself. detector: None for an attack on the classifier.
    """

    model: str
    detector: str | None
    attack: str
    images: str
    group: str
    n: int
    wins: dict[str, int]


@dataclass(frozen=True)
class Failure:
    """A detector that could not be fitted, scored or checked: it has no rows, the rest has.

    detector: None where it is the network's accuracy that failed. stage: "fit", "score", "classify"
    or "check". attack: "none" where it failed on clean images or in fitting.
    """

    model: str
    detector: str | None
    attack: str
    stage: str
    error: str
    traceback: str = field(default="", compare=False)


@dataclass(frozen=True)
class CellFiles:
    """Where the scores of one set lie.

    detector: None for the classifier's right answers. group: "id", "near" or "far". files: relative
    to the folder of `results.json`, in the order of the images.
    """

    model: str
    detector: str | None
    attack: str
    images: str
    group: str
    files: tuple[str, ...]


_LISTS: dict[str, type[Any]] = {
    "intervals": Interval,
    "members": Wins,
    "failures": Failure,
    "summary": Summary,
    "cells": CellFiles,
}
"""The lists that older files may lack, and what they hold."""


@dataclass
class Results:
    """What an evaluation found, and how. `docs/results_schema.md` describes the fields.

    complete: whether everything that was asked for is there, or failed; False after an
    interruption.
    """

    rows: list[Row] = field(default_factory=list)
    classification: list[Accuracy] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    members: list[Wins] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    summary: list[Summary] = field(default_factory=list)
    cells: list[CellFiles] = field(default_factory=list)
    complete: bool = True

    def extend(self, other: Results) -> None:
        """Add another evaluation's records, but its cells, which lie in a folder of their own."""
        for name in ("rows", "classification", "warnings", *_LISTS):
            if name != "cells":
                getattr(self, name).extend(getattr(other, name))
        if not self.environment:
            self.environment = other.environment
        self.complete &= other.complete

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read the `results.json` of a folder.

        Raises: `UserError` where it is missing, damaged or of another schema.
        """
        content = _read_json(folder / "results.json")
        try:
            optional: dict[str, Any] = {}
            for name, kind in _LISTS.items():
                optional[name] = _records(kind, content.get(name, []))
            return cls(
                _records(Row, content["rows"]),
                _records(Accuracy, content["classification"]),
                content["warnings"],
                content["environment"],
                **optional,
                complete=content.get("complete", True),
            )
        except (TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            path = folder / "results.json"
            raise UserError(f"results: {path} is damaged ({reason})") from error

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "complete": self.complete,
            "environment": _as_json(self.environment),
            "rows": _dicts(self.rows),
            "classification": _dicts(self.classification),
            "warnings": self.warnings,
        }
        for name in _LISTS:
            content[name] = _dicts(getattr(self, name))
        return content

    def write(self, folder: Path) -> None:
        """Write `results.json` and `results.csv`, each in one move; make the folder if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
        replace_file(folder / "results.json", text + "\n")
        replace_file(folder / "results.csv", _csv(_dicts(self.rows)))


def _dicts(records: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(record) for record in records]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        hint = "robust-ood evaluate writes it"
        raise UserError(f"results: no such file: {path}; {hint}") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"results: {path} is missing or damaged ({reason})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"results: {path} is not of schema {SCHEMA}")
    return content


def _as_json(value: Any) -> Any:
    """Return settings in which what JSON lacks, such as infinity, is text: it loses no results."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_as_json, value))
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)


def _records(kind: type[T], listed: Sequence[Mapping[str, Any]]) -> list[T]:
    """Return records as they were before JSON made lists of their tuples."""
    records = []
    for fields in listed:
        values = dict(fields)
        for name, value in fields.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        records.append(kind(**values))
    return records


def describe_environment(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return versions, machine, date, command and the settings that the results depend on."""
    packages = ("robust-ood", "torch", "torchvision", "pytorch-lightning", "numpy")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {name: version(name) for name in packages},
        **settings,
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
