"""`metrics.csv`: one row for each logged step or validation, continued row by row where a run is
resumed.
"""

from __future__ import annotations

import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from robust_ood.writing import in_place_of

Cells = dict[str, str]


class MetricsFile(Logger):
    """A Lightning logger that appends to `FOLDER/metrics.csv`.

    Every row is on disk when `log_metrics` returns, so a killed run has lost none; a resumed run
    goes back to the rows that its checkpoint knew of (`truncate`) and then writes the very rows
    that the run never killed would have written.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[Cells] = []
        self.columns: list[str] = ["epoch", "step"]

    @property
    def name(self) -> str:
        """The file's stem."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: a folder holds one run."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the run's `config.yaml` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {name: repr(float(value)) for name, value in metrics.items() if name != "epoch"}
        row |= {"epoch": str(int(metrics.get("epoch", 0))), "step": str(step or 0)}
        self.rows.append(row)
        new = sorted(row.keys() - set(self.columns))
        if new or not self.path.exists():
            self.columns = self.columns[:2] + sorted({*self.columns[2:], *new})
            self._rewrite()
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def truncate(self, count: int) -> None:
        """Go back to the first `count` rows of the file; 0 begins a new one."""
        rows: list[Cells] = []
        if count and self.path.exists():
            with self.path.open(newline="") as file:
                rows = [
                    {name: cell for name, cell in row.items() if cell}
                    for row in csv.DictReader(file)
                ][:count]
        self.rows = rows
        self.columns = [
            "epoch",
            "step",
            *sorted({name for row in rows for name in row} - {"epoch", "step"}),
        ]
        self.path.unlink(missing_ok=True)
        if rows:
            self._rewrite()

    def _rewrite(self) -> None:
        with in_place_of(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
