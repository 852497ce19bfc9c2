"""Results: records by the published schema, written all at once or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from robust_ood.errors import UserError
from robust_ood.evaluation.records import (
    METRICS,
    Accuracy,
    CellFiles,
    Failure,
    Interval,
    Row,
    Summary,
    Wins,
)
from robust_ood.names import as_path, spreadsheet_cell
from robust_ood.texts import first_sentence, printable, shown
from robust_ood.writing import replace_file

__all__ = [
    "METRICS",
    "SCHEMA",
    "Accuracy",
    "CellFiles",
    "Failure",
    "Interval",
    "Results",
    "Row",
    "Summary",
    "Wins",
    "describe_environment",
]

SCHEMA = 2
LARGEST = 2**30
"""Bytes of a `results.json` that are read; more is no file of ours."""

_REQUIRED = ("environment", "rows", "classification", "warnings")
_LISTS = ("intervals", "members", "failures", "summary", "cells", "shifted_classification")
"""The lists that older files may lack."""

_REFUSAL = re.compile(r"(?P<what>.*?)(, got (`\w+`|\d+))?( - at `\$\.?(?P<place>[^`]*)`)?$")
"""A message of msgspec: what it expected, and where."""


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
    shifted_classification: list[Accuracy] = field(default_factory=list)
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
    def read(cls, folder: Path | str) -> Results:
        """Read the `results.json` of a folder.

        Fields that this version does not know are left out, so that files of later releases with
        the same schema can be read.

        Raises: `UserError` where it is missing, damaged or of a later schema; it names the field.
        """
        path = as_path(folder, "results") / "results.json"
        content = _read_json(path)
        for name in _REQUIRED:
            if name not in content:
                raise UserError(f"results: {path} is damaged: it lacks {name}")
        try:
            return _checked(content)
        except ValueError as error:
            raise UserError(f"results: {path} is damaged: {error}") from error

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

    def write(self, folder: Path | str) -> None:
        """Write `results.json` and `results.csv`, each in one move; make the folder if need be.

        Raises: `UserError` naming the field for what no results may hold, such as NaN.
        """
        folder = as_path(folder, "output")
        content = self.as_dict()
        try:
            _checked(content)
        except ValueError as error:
            raise UserError(f"results: {error}; nothing was written") from error
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, allow_nan=False)
        replace_file(folder / "results.json", text + "\n")
        # Names of files that are not UTF-8 hold what cannot be encoded.
        table = _csv(content["rows"]).encode(errors="backslashreplace")
        replace_file(folder / "results.csv", table)


def _dicts(records: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(record) for record in records]


def _read_json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise UserError(f"results: {path} is no file; robust-ood evaluate writes it")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ValueError(f"{size:,} bytes; at most {LARGEST:,} are read")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        hint = "robust-ood evaluate writes it"
        raise UserError(f"results: no such file: {path}; {hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = printable(first_sentence(error, 80))
        raise UserError(f"results: {path} is missing or damaged ({reason})") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    # True would equal 1.
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise UserError(f"results: {path} is not of schema 1 to {SCHEMA}")
    return dict(content)


def _checked(content: Mapping[str, Any]) -> Results:
    """Return the content of `results.json` as records.

    Raises: `ValueError` with the place, what is expected there, and what it holds.
    """
    try:
        return msgspec.convert(content, Results)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(_refusal(str(error), content)) from error


def _refusal(message: str, content: Any) -> str:
    """Return a message of msgspec with the value at its place, such as `rows[3].auroc`."""
    match = _REFUSAL.match(message)
    assert match is not None
    what = match["what"].replace("`", "")
    place = match["place"]
    if place is None:
        return printable(what)
    value = content
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", place.replace("[...]", "")):
        value = value[name] if name else value[int(index)]
    if what.startswith(("Expected", "Invalid")):
        what = f"{what[0].lower()}{what[1:]}, got {shown(value)}"
    return printable(f"{place}: {what}")


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
    for row in rows:
        cells = {}
        for name, value in row.items():
            cells[name] = spreadsheet_cell(value)
        writer.writerow(cells)
    return text.getvalue()
