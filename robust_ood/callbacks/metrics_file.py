"""`metrics.csv`: one row for each logged step or validation, also of a resumed run."""

from __future__ import annotations

import csv
import itertools
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.names import from_spreadsheet, spreadsheet_cell
from robust_ood.texts import first_sentence, printable
from robust_ood.writing import in_place_of, naming

_KEYS = ["epoch", "step"]


class MetricsFile(Logger):
    """A Lightning logger that appends to `FOLDER/metrics.csv`.

    Every row is on disk when `log_metrics` returns, so a killed run has lost none; a resumed run
    goes back to the rows that its checkpoint knew of (`truncate`) and then writes the very rows
    that the run never killed would have written.

    Args:
        folder: the run's folder.
    """

    @typed
    def __init__(self, folder: Path | str) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.rows: list[dict[str, str]] = []
        self.columns: list[str] = list(_KEYS)

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
        row = {"epoch": str(int(metrics.get("epoch", 0))), "step": str(step or 0)}
        for name, value in metrics.items():
            column = printable(name)
            if column not in row:
                row[column] = repr(float(value))
        self.rows.append(row)
        if self.path.exists() and row.keys() <= set(self.columns):
            with naming(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._rewrite()

    @rank_zero_only
    def truncate(self, count: int) -> None:
        """Go back to the first `count` rows of the file; 0 removes it.

        Raises: `UserError` for a file that has not these rows.
        """
        rows = []
        if count and self.path.exists():
            try:
                rows = self._read(count)
            except (ValueError, csv.Error) as error:
                reason = first_sentence(error, 80)
                raise UserError(
                    f"output: {self.path} is damaged ({reason}); remove it to go on without the "
                    "rows before the checkpoint"
                ) from error
        self.rows = rows
        self.path.unlink(missing_ok=True)
        if self.rows:
            self._rewrite()

    def _read(self, count: int) -> list[dict[str, str]]:
        """Return the first rows of the file."""
        rows = []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            reader.fieldnames = list(map(from_spreadsheet, reader.fieldnames or ()))
            for row in itertools.islice(reader, count):
                rows.append(_checked(row))
        if len(rows) < count:
            raise ValueError(f"{len(rows)} rows, and the checkpoint knew {count}")
        return rows

    def _rewrite(self) -> None:
        names: set[str] = set()
        for row in self.rows:
            names.update(row)
        self.columns = [*_KEYS, *sorted(names - set(_KEYS))]
        with (
            in_place_of(self.path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerow(map(spreadsheet_cell, self.columns))
            csv.DictWriter(file, self.columns).writerows(self.rows)


def _checked(row: dict[Any, Any]) -> dict[str, str]:
    """Return the fields of a row that are filled.

    Raises: `ValueError` for a field without a column, and what is no number.
    """
    if None in row or not all(row.get(key) for key in _KEYS):
        raise ValueError("a row does not fit the columns")
    filled = {name: text for name, text in row.items() if text}
    for name in _KEYS:
        int(filled[name])
    for text in filled.values():
        float(text)
    return filled
