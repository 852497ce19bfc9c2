"""What the OOD attack on encoders found, for tables and figures, and the files that hold it."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.attacks import mape
from robust_ood.errors import UserError
from robust_ood.evaluation.matching import MatchTask, PairScoreTask, read
from robust_ood.evaluation.records import Failure
from robust_ood.evaluation.store import Cell, Store
from robust_ood.metrics import auroc
from robust_ood.names import as_path, spreadsheet_cell
from robust_ood.texts import first_sentence, printable
from robust_ood.writing import replace_file

SCHEMA = 1
SHOWN = 8
"""How many pairs are kept with images and codes, for pictures."""
NAME = "encoder_attack"
"""Of the files of results."""
SIDES = ("inliers", "starts", "generated")
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EncoderRow:
    """A detector under the attack from one kind of start.

    pairs: how many. auroc_start: of inliers against the start images. auroc: against the generated
    ones. mape_mean, mape_median: mean absolute percentage error of what was matched, a fraction;
    mape_below_1_percent: the share of pairs. result: index of the arrays.
    """

    model: str
    id: str
    start: str
    matched: str
    detector: str
    pairs: int
    auroc_start: float
    auroc: float
    mape_mean: float
    mape_median: float
    mape_below_1_percent: float
    result: int


@dataclass
class EncoderResults:
    """All rows, and per-pair arrays of each start and matching.

    arrays: of each result `mape (N,)`, `distances (N,)`, `losses (iterations, N)` at `iterations`,
    and of the first pairs `inliers`, `starts`, `generated` `(n, H, W, C)` uint8, `codes` and
    `targets` `(n, D)`; `scores: DETECTOR: SIDE` `(N,)` of each detector and side.
    """

    rows: list[EncoderRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    arrays: list[Arrays] = field(default_factory=list)

    def add(
        self,
        matches: Sequence[MatchTask],
        scored: Sequence[PairScoreTask],
        store: Store,
    ) -> None:
        """Add what the store has of one start and matching; nothing where a chunk is missing."""
        cells = _read_all(store, [match.key for match in matches])
        if cells is None:
            return
        first = matches[0]
        arrays = _of_pairs(cells, is_of_score=first.matching.is_of_score)
        arrays |= _examples(first, cells[0])
        self.arrays.append(arrays)
        for label in scored[0].keys:
            of_detector = _read_all(store, [task.keys[label] for task in scored])
            if of_detector is None:
                continue  # a failure says why
            for side in SIDES:
                arrays[f"scores: {label}: {side}"] = _joined(of_detector, side)
            self.rows.append(self._row(first, label, arrays))

    def _row(self, match: MatchTask, detector: str, arrays: Arrays) -> EncoderRow:
        scores = {}
        for side in SIDES:
            scores[side] = torch.from_numpy(arrays[f"scores: {detector}: {side}"])
        errors = arrays["mape"]
        return EncoderRow(
            model=match.model,
            id=match.inliers.images.name,
            start=match.starts.images.name,
            matched=match.attack,
            detector=detector,
            pairs=len(errors),
            auroc_start=float(auroc(scores["inliers"], scores["starts"])),
            auroc=float(auroc(scores["inliers"], scores["generated"])),
            mape_mean=float(errors.mean()),
            mape_median=float(np.median(errors)),
            mape_below_1_percent=float((errors < 0.01).mean()),
            result=len(self.arrays) - 1,
        )

    def write(self, folder: Path | str) -> None:
        """Write `encoder_attack.json`, `.csv` and `pairs.npz`, each in one move."""
        folder = as_path(folder, "output")
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        flat = {}
        for index, arrays in enumerate(self.arrays):
            for name, values in arrays.items():
                flat[f"{index}: {name}"] = values
        np.savez_compressed(content, **flat)  # type: ignore[arg-type]
        replace_file(folder / "pairs.npz", content.getvalue())
        table = io.StringIO()
        writer = csv.DictWriter(table, list(EncoderRow.__dataclass_fields__))
        writer.writeheader()
        for row in self.rows:
            cells = {name: spreadsheet_cell(value) for name, value in asdict(row).items()}
            writer.writerow(cells)
        replace_file(folder / f"{NAME}.csv", table.getvalue())
        facts = {
            "schema": SCHEMA,
            "rows": [asdict(row) for row in self.rows],
            "failures": [asdict(failure) for failure in self.failures],
            "environment": self.environment,
            "results": len(self.arrays),
        }
        replace_file(folder / f"{NAME}.json", json.dumps(facts, indent=1, default=str) + "\n")

    @classmethod
    def read(cls, folder: Path | str) -> EncoderResults:
        """Read the results of a folder.

        Raises: `UserError` where they are missing, damaged or of another schema.
        """
        folder = as_path(folder, "results")
        path = folder / f"{NAME}.json"
        try:
            facts = json.loads(path.read_bytes())
            if facts["schema"] != SCHEMA:
                raise ValueError(f"schema {facts['schema']}, expected {SCHEMA}")
            rows = msgspec.convert(facts["rows"], list[EncoderRow])
            failures = msgspec.convert(facts["failures"], list[Failure])
            arrays = _read_arrays(folder / "pairs.npz", facts["results"])
            return cls(rows, failures, facts["environment"], arrays)
        except FileNotFoundError as error:
            raise UserError(
                f"results: no such file: {error.filename}; robust-ood encoder-attack writes it"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            reason = printable(first_sentence(error, 80))
            raise UserError(f"results: {path} is damaged ({reason})") from error


def _read_arrays(path: Path, count: int) -> list[Arrays]:
    arrays: list[Arrays] = [{} for _ in range(count)]
    with np.load(path) as archive:
        for key in archive.files:
            index, _, name = key.partition(": ")
            arrays[int(index)][name] = archive[key]
    return arrays


def _read_all(store: Store, keys: Sequence[str]) -> list[Cell] | None:
    """Return all cells, or None where one is missing."""
    cells = []
    for key in keys:
        cell = store.read(key)
        if cell is None:
            return None
        cells.append(cell)
    return cells


def _joined(cells: Sequence[Cell], name: str) -> NDArray[Any]:
    return np.concatenate([cell.arrays[name] for cell in cells])


def _of_pairs(cells: Sequence[Cell], *, is_of_score: bool) -> Arrays:
    """Return errors, distances and losses of all pairs."""
    codes = torch.from_numpy(_joined(cells, "codes"))
    targets = torch.from_numpy(_joined(cells, "targets"))
    if is_of_score:
        # One number, which may be 0: the largest of all takes the place of the pair's own.
        largest = targets.abs().amax().clamp_min(torch.finfo(targets.dtype).tiny)
        errors = (codes - targets).abs()[:, 0] / largest
    else:
        errors = mape(codes, targets)
    return {
        "mape": errors.numpy(),
        "distances": _joined(cells, "distances"),
        "losses": np.concatenate([cell.arrays["losses"] for cell in cells], axis=1),
        "iterations": cells[0].arrays["iterations"],
    }


def _examples(match: MatchTask, cell: Cell) -> Arrays:
    """Return images and codes of the first pairs of the first chunk."""
    generated = np.rint(cell.arrays["images"][:SHOWN] * 255).astype(np.uint8)
    return {
        "inliers": read(match.inliers)[:SHOWN].permute(0, 2, 3, 1).numpy(),
        "starts": read(match.starts)[:SHOWN].permute(0, 2, 3, 1).numpy(),
        "generated": generated.transpose(0, 2, 3, 1),
        "codes": cell.arrays["codes"][:SHOWN],
        "targets": cell.arrays["targets"][:SHOWN],
    }
