"""`metrics.csv`: everything that a run logs, one row a time it logs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only


class MetricsFile(Logger):
    """Appends logged numbers to `metrics.csv`, and goes on with the file of the run that is resumed.

    Rows of an earlier run from the first step logged on are replaced, since this run makes them anew. A new column
    means that the file is written again. (Lightning's own CSV logger deletes the file that it finds.)

    Args:
        folder: the run folder, which exists by the time something is logged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.columns: list[str] | None = None

    @property
    def name(self) -> str:
        """No folder of its own."""
        return ""

    @property
    def version(self) -> str:
        """No folder of its own."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave hyper-parameters to `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one row."""
        row: dict[str, Any] = {"step": step, **metrics}
        if self.columns is None:
            self._write([old for old in self._read() if int(old["step"]) < (step or 0)])
        if set(row) - set(self.columns or ()):
            self._write([*self._read(), row])
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns or ()).writerow(row)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        known = {"step": None, "epoch": None, **{name: None for row in rows for name in row}}
        self.columns = list(known)
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(self.path)
