"""What a report is made of: the results of one or several folders, and the scores and pictures that
lie there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robust_ood.errors import UserError
from robust_ood.evaluation import Results, Row, read_cell
from robust_ood.evaluation.pictures import Picture, read_pictures
from robust_ood.evaluation.results import CellFiles, Interval

GROUPS = ("near", "far")


class Scores(NamedTuple):
    """Scores of one set `(N,)`; group: "id", "near" or "far"."""

    images: str
    group: str
    values: NDArray[np.float64]


@dataclass
class Source:
    """The results of all folders as one, models of the same name told apart by their folders."""

    results: Results
    environments: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    _cells: list[tuple[Path, CellFiles]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sets, self.means = _split(self.results.rows)
        self._averages = set(self.means)
        self._intervals = {_place(one): one for one in self.results.intervals}
        self._clean = {self._where(row): row for row in self.results.rows if row.attacked == "none"}
        self._members: dict[tuple[str, ...], list[Row]] = {}
        for row in self.sets:
            self._members.setdefault(_subject(row), []).append(row)

    @property
    def models(self) -> list[str]:
        """The models in the order of the folders."""
        return list(dict.fromkeys(row.model for row in self.results.rows))

    @property
    def detectors(self) -> list[str]:
        """The detectors in the order of the rows."""
        return list(dict.fromkeys(row.detector for row in self.results.rows))

    @property
    def groups(self) -> list[str]:
        """Those of "near" and "far" that have rows."""
        return [group for group in GROUPS if any(row.group == group for row in self.means)]

    @property
    def norms(self) -> list[str]:
        """The norms of the attacks."""
        return list(dict.fromkeys(row.norm for row in self.means if row.attacked == "both"))

    def is_single(self, mean: Row) -> bool:
        """Return whether a mean is that of a single set."""
        return len(self._members.get(_subject(mean), [])) == 1

    def interval(self, row: Row, metric: str = "auroc") -> tuple[float, float] | None:
        """Return a row's interval; that of a mean over a group only where the group is a single
        set.
        """
        if row in self._averages:
            members = self._members.get(_subject(row), [])
            if len(members) != 1:
                return None
            (row,) = members
        found = self._intervals.get(_place(row))
        return getattr(found, metric) if found else None

    def worst(self, model: str, detector: str, group: str) -> Row | None:
        """Return the mean with both sides attacked of the lowest AUROC, of equal ones that of the
        largest radius.
        """
        rows = [
            row
            for row in self.means
            if (row.model, row.detector, row.group) == (model, detector, group)
        ]
        return min(
            (row for row in rows if row.attacked == "both"),
            key=lambda row: (row.auroc, -row.radius),
            default=None,
        )

    def by_radius(
        self, model: str, detector: str, group: str, norm: str
    ) -> list[tuple[float, float]]:
        """Return each radius with the lowest AUROC of the mean, both sides attacked; the clean one
        first.
        """
        rows = [
            row
            for row in self.means
            if (row.model, row.detector, row.group) == (model, detector, group)
        ]
        found: dict[float, float] = {}
        for row in rows:
            if row.attacked == "none":
                found[0.0] = row.auroc
            if row.attacked == "both" and row.norm == norm:
                found[row.radius] = min(row.auroc, found.get(row.radius, 1.0))
        return sorted(found.items())

    def clean(self, row: Row) -> Row | None:
        """Return the row of the same detector and OOD set, or mean, without attack."""
        return self._clean.get(self._where(row))

    def _where(self, row: Row) -> tuple[object, ...]:
        return (row.model, row.detector, row.id, row.ood, row.group, row in self._averages)

    def scores(self, model: str, detector: str, attack: str) -> list[Scores]:
        """Return the scores of all sets under an attack, or "none"; nothing where their files are
        not there.
        """
        return [
            Scores(
                cell.images,
                cell.group,
                np.concatenate([_values(folder / name) for name in cell.files]),
            )
            for folder, cell in self._cells
            if (cell.model, cell.detector, cell.attack) == (model, detector, attack)
        ]


def read(folders: Sequence[Path]) -> Source:
    """Read folders of results.

    Raises: `UserError` for no folder, or one without results, with damaged ones or of another
    schema.
    """
    if not folders:
        raise UserError(
            "results: no folder given; one or several folders with a results.json are wanted"
        )
    merged, environments, pictures, cells = Results(), [], [], []
    for folder in folders:
        results = Results.read(folder)
        own = read_pictures(folder)
        taken = {row.model for row in merged.rows}
        for model in dict.fromkeys(row.model for row in results.rows):
            if model in taken:
                _rename(
                    results,
                    own,
                    model,
                    _free(model, folder, taken | {row.model for row in results.rows}),
                )
        subjects = {(row.model, row.detector) for row in results.rows}
        pictures += [
            one for one in own if (one.model, one.detector) in subjects
        ]  # others are of an earlier evaluation
        cells += [(folder, cell) for cell in results.cells]
        environments.append(
            (", ".join(dict.fromkeys(row.model for row in results.rows)), results.environment)
        )
        merged.extend(results)
    if not merged.rows and not merged.failures:
        raise UserError(f"results: {folders[0] / 'results.json'} has no rows")
    return Source(merged, environments, pictures, cells)


def _free(model: str, folder: Path, taken: set[str]) -> str:
    name, count = f"{model} ({folder.resolve().name})", 2
    while name in taken:
        name, count = f"{model} ({folder.resolve().name} {count})", count + 1
    return name


def _rename(results: Results, pictures: list[Picture], old: str, new: str) -> None:
    for name in ("rows", "classification", "intervals", "members", "failures", "cells"):
        records = getattr(results, name)
        records[:] = [replace(one, model=new) if one.model == old else one for one in records]
    pictures[:] = [replace(one, model=new) if one.model == old else one for one in pictures]
    results.warnings[:] = [
        new + warning[len(old) :] if warning.startswith(f"{old}, ") else warning
        for warning in results.warnings
    ]


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of sets and those of means: a mean is the last row called after its group."""
    last = {_subject(row): index for index, row in enumerate(rows) if row.ood == row.group}
    places = set(last.values())
    sets = [row for index, row in enumerate(rows) if index not in places]
    return sets, [rows[index] for index in sorted(places)]


def _subject(row: Row) -> tuple[str, ...]:
    return (row.model, row.detector, row.attack, row.attacked, row.id, row.group)


def _place(one: Row | Interval) -> tuple[str, ...]:
    return (one.model, one.detector, one.attack, one.attacked, one.id, one.ood, one.group)


def _values(path: Path) -> NDArray[np.float64]:
    try:
        return np.asarray(read_cell(path).arrays["scores"], dtype=np.float64)
    except FileNotFoundError as error:
        raise UserError(
            f"results: {path} is missing; evaluate again, which computes only what is not there"
        ) from error
