"""Results: rows by the published schema, written all at once or not at all."""

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
from robust_ood.evaluation.records import (
    Accuracy,
    CellFiles,
    Failure,
    Interval,
    Row,
    Summary,
    Wins,
)
from robust_ood.writing import replace_file

SCHEMA = 1
T = TypeVar("T")
_LISTS: dict[str, type[Any]] = {
    "intervals": Interval,
    "members": Wins,
    "failures": Failure,
    "summary": Summary,
    "cells": CellFiles,
}


@dataclass
class Results:
    """What an evaluation found, and where it was found. `docs/results_schema.md` describes the
    fields.

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
        """Add another evaluation's rows, as for a second model; not its cells, which lie in a
        folder of their own.
        """
        for name in ("rows", "classification", "warnings", *_LISTS):
            getattr(self, name).extend(getattr(other, name) if name != "cells" else [])
        self.environment = self.environment or other.environment
        self.complete &= other.complete

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read the `results.json` of a folder.

        Raises: `UserError` where it is missing, damaged or of another schema.
        """
        path = folder / "results.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise UserError(
                f"results: no such file: {path}; robust-ood evaluate writes it"
            ) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"results: {path} is missing or damaged ({' '.join(str(error).split())})"
            ) from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise UserError(f"results: {path} is not of schema {SCHEMA}")
        try:
            rows, accuracies = (
                _records(Row, content["rows"]),
                _records(Accuracy, content["classification"]),
            )
            others: dict[str, Any] = {
                name: _records(kind, content.get(name, [])) for name, kind in _LISTS.items()
            }
            complete = content.get("complete", True)
            return cls(
                rows,
                accuracies,
                content["warnings"],
                content["environment"],
                **others,
                complete=complete,
            )
        except (TypeError, KeyError) as error:
            raise UserError(
                f"results: {path} is damaged ({' '.join(str(error).split())})"
            ) from error

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        return {
            "schema": SCHEMA,
            "complete": self.complete,
            "environment": _as_json(self.environment),
            "rows": [asdict(row) for row in self.rows],
            "classification": [asdict(row) for row in self.classification],
            "warnings": self.warnings,
            **{name: [asdict(one) for one in getattr(self, name)] for name in _LISTS},
        }

    def write(self, folder: Path) -> None:
        """Write `results.json` and `results.csv`, each in one move, into the folder, made where it
        is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(
            folder / "results.json", json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        )
        replace_file(folder / "results.csv", _csv([asdict(row) for row in self.rows]))


def _as_json(value: Any) -> Any:
    """Return settings with what JSON has no word for as text: an infinite one must not lose what
    was computed.
    """
    if isinstance(value, Mapping):
        return {str(key): _as_json(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(inside) for inside in value]
    plain = (
        value is None
        or isinstance(value, bool | int | str)
        or (isinstance(value, float) and math.isfinite(value))
    )
    return value if plain else str(value)


def _records(kind: type[T], listed: Sequence[Mapping[str, Any]]) -> list[T]:
    """Return records as they were before JSON made lists of their tuples."""
    return [
        kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in one.items()})
        for one in listed
    ]


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
