"""Results: rows by the published schema, written all at once or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robust_ood.errors import UserError

SCHEMA = 1
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
    """One detector against one attack on one OOD set: rates in [0, 1], by the definitions in `robust_ood.metrics`.

    attacked: which images the attack changed, "none", "in", "out" or "both". ood: the set, or "near" / "far" for the
    mean over a group. fpr95: share of OOD accepted when 95 % of ID is accepted. fpr95_ood_positive: share of ID
    rejected when 95 % of OOD is rejected. tpr_deployed, fpr_deployed: shares of ID and OOD accepted at the threshold
    that accepts 95 % of the *clean* ID.
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
    """Classification accuracy, a fraction in [0, 1], clean (attack "none") or under an attack on the classifier."""

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


@dataclass
class Results:
    """What an evaluation found, and where it was found."""

    rows: list[Row] = field(default_factory=list)
    classification: list[Accuracy] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def extend(self, other: Results) -> None:
        """Add another evaluation's rows, as for a second model."""
        self.rows += other.rows
        self.classification += other.classification
        self.warnings += other.warnings
        self.environment = self.environment or other.environment

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read the `results.json` of a folder.

        Raises: `UserError` where it is missing, damaged or of another schema.
        """
        path = folder / "results.json"
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"results: {path} is missing or damaged ({' '.join(str(error).split())})") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise UserError(f"results: {path} is not of schema {SCHEMA}")
        return cls(
            [Row(**row) for row in content["rows"]],
            [Accuracy(**row) for row in content["classification"]],
            content["warnings"],
            content["environment"],
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "rows": [asdict(row) for row in self.rows],
            "classification": [asdict(row) for row in self.classification],
            "warnings": self.warnings,
        }

    def write(self, folder: Path) -> None:
        """Write `results.json` and `results.csv`, each in one move, into the folder, made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "results.json", json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")
        replace_file(folder / "results.csv", _csv([asdict(row) for row in self.rows]))


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


def replace_file(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new content and nothing between."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
