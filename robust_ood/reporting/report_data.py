"""The input of a report: results, scores and pictures of one or several folders, read as one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.errors import UserError
from robust_ood.evaluation import Accuracy, Results, Row, read_cell
from robust_ood.evaluation.pictures import Picture, read_pictures
from robust_ood.evaluation.results import CellFiles, Interval
from robust_ood.metrics import deployed_threshold
from robust_ood.texts import printable

GROUPS = ("near", "far", "full-near", "full-far")
"""Groups of OOD sets; in the full ones, covariate-shifted inliers count as inliers, too."""

# Fields whose texts may have several lines.
_OF_LINES = ("traceback", "environment")

# The lists of `Results` whose records name a model.
_RECORDS_OF_MODELS = (
    "rows", "classification", "shifted_classification", "intervals", "members", "failures", "cells",
)  # fmt: skip


class SetScores(NamedTuple):
    """Scores `(N,)` of one set of images; group: "id", "shifted", "near" or "far"."""

    images: str
    group: str
    values: NDArray[np.float64]


@dataclass
class ReportData:
    """The merged results of all folders; models with the same name carry their folder's name.

    recipes: their checkpoints by name, of those with several. models_by_folder: in the order of the
    folders. checkpoints, deviations: where rows are means over the checkpoints of a recipe
    (`robust_ood.reporting.recipes.headline`), these by recipe, and by row its deviations.
    thresholds_of_recipes: there, those of the checkpoints, by recipe and detector.
    """

    results: Results
    environments: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    _cells: list[tuple[Path, CellFiles]] = field(default_factory=list)
    recipes: dict[str, list[str]] = field(default_factory=dict)
    models_by_folder: list[list[str]] = field(default_factory=list)
    checkpoints: dict[str, list[str]] = field(default_factory=dict)
    deviations: dict[Row | Accuracy, Mapping[str, float]] = field(default_factory=dict)
    thresholds_of_recipes: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sets, self.means = _split(self.results.rows)
        self._averages = set(self.means)
        self._intervals: dict[tuple[str, ...], list[Interval]] = {}
        for interval in self.results.intervals:
            self._intervals.setdefault(_row_key(interval), []).append(interval)
        self._clean: dict[tuple[object, ...], Row] = {}
        for row in self.results.rows:
            if row.attacked == "none":
                self._clean[self._clean_key(row)] = row
        self._members: dict[tuple[str, ...], list[Row]] = {}
        for row in self.sets:
            self._members.setdefault(_mean_key(row), []).append(row)

    @property
    def models(self) -> list[str]:
        """The models in the order of the folders."""
        return _models(self.results.rows)

    @property
    def detectors(self) -> list[str]:
        """The detectors in the order of the rows."""
        return list(dict.fromkeys(row.detector for row in self.results.rows))

    @property
    def groups(self) -> list[str]:
        """Those of `GROUPS` that have rows."""
        present = {row.group for row in self.means}
        return [group for group in GROUPS if group in present]

    @property
    def norms(self) -> list[str]:
        """The norms of the attacks."""
        return list(dict.fromkeys(row.norm for row in self.means if row.attacked == "both"))

    def is_single(self, mean: Row) -> bool:
        """Return whether a mean is that of a single set."""
        return len(self._members.get(_mean_key(mean), [])) == 1

    def interval(self, row: Row, metric: str = "auroc") -> tuple[float, float] | None:
        """Return a row's interval; in older results, means over several sets have none."""
        intervals = self._intervals.get(_row_key(row), [])
        if row in self._averages:
            members = self._members.get(_mean_key(row), [])
            # A set that is called like its group comes before the mean.
            namesakes = [member for member in members if member.ood == row.ood]
            intervals = intervals[len(namesakes) :]
            if not intervals and len(members) == 1:
                return self.interval(members[0], metric)
        if not intervals:
            return None
        bounds: tuple[float, float] | None = getattr(intervals[0], metric)
        return bounds

    def threshold(self, model: str, detector: str) -> float | None:
        """Return the threshold that a detector would be deployed with, where it is known.

        In older results it accepts 95 % of the clean test images.
        """
        for row in self.sets:
            if (row.model, row.detector) == (model, detector) and row.threshold is not None:
                return row.threshold
        for scores in self.scores(model, detector, "none"):
            if scores.group == "id":
                return deployed_threshold(torch.from_numpy(scores.values))
        return None

    def means_of(self, model: str, detector: str, group: str) -> list[Row]:
        """Return the means of a network and detector over a group of OOD sets, for all attacks."""
        subject = (model, detector, group)
        return [row for row in self.means if (row.model, row.detector, row.group) == subject]

    def worst(self, model: str, detector: str, group: str) -> Row | None:
        """Return the mean with the lowest AUROC, both sides attacked; ties: the largest radius."""
        rows = [row for row in self.means_of(model, detector, group) if row.attacked == "both"]
        return min(rows, key=lambda row: (row.auroc, -row.radius), default=None)

    def deviation(self, record: Row | Accuracy, metric: str = "auroc") -> float | None:
        """Return the deviation of a metric over checkpoints; None for a single network."""
        return self.deviations.get(record, {}).get(metric)

    def rows_by_radius(
        self, model: str, detector: str, group: str, norm: str
    ) -> list[tuple[float, Row]]:
        """Return each radius with its lowest mean, both sides attacked; the clean one is first."""
        rows: dict[float, Row] = {}
        for row in self.means_of(model, detector, group):
            if row.attacked == "none":
                rows[0.0] = row
            if row.attacked == "both" and row.norm == norm:
                lowest = rows.setdefault(row.radius, row)
                if row.auroc < lowest.auroc:
                    rows[row.radius] = row
        return sorted(rows.items(), key=lambda item: item[0])

    def by_radius(
        self, model: str, detector: str, group: str, norm: str
    ) -> list[tuple[float, float]]:
        """Return `(radius, lowest mean AUROC)` with both sides attacked; the clean one is first."""
        rows = self.rows_by_radius(model, detector, group, norm)
        return [(radius, row.auroc) for radius, row in rows]

    def clean(self, row: Row) -> Row | None:
        """Return the row of the same detector and OOD set, or mean, without attack."""
        return self._clean.get(self._clean_key(row))

    def _clean_key(self, row: Row) -> tuple[object, ...]:
        return (row.model, row.detector, row.id, row.ood, row.group, row in self._averages)

    def scores(self, model: str, detector: str, attack: str) -> list[SetScores]:
        """Return the scores of all sets under an attack (or "none"), where they were stored."""
        scores = []
        for folder, cell in self._cells:
            if (cell.model, cell.detector, cell.attack) == (model, detector, attack):
                values = []
                for name in cell.files:
                    values.append(_read_scores(folder / name))  # (n,)
                joined = np.concatenate(values)
                if not len(joined):
                    raise UserError(f"results: {folder / cell.files[0]} has no scores")
                scores.append(SetScores(cell.images, cell.group, joined))
        return scores

    def drawn(self, kind: str) -> list[Picture]:
        """Return a kind's pictures that did not fail, in the order of networks and detectors."""
        models = self.models
        detectors = self.detectors
        pictures = []
        for picture in self.pictures:
            if picture.kind == kind and "failed" not in picture.about:
                pictures.append(picture)

        def position(picture: Picture) -> tuple[int, int]:
            return models.index(picture.model), detectors.index(picture.detector)

        return sorted(pictures, key=position)


def read_folders(folders: Sequence[Path], members: Collection[Path] = ()) -> ReportData:
    """Read and merge folders of results.

    Args:
        folders: of evaluations.
        members: those of them that hold a checkpoint of a recipe, which is called after its folder.

    Raises:
        UserError: no folder; a folder whose results are missing, damaged or of another schema.
    """
    if not folders:
        raise UserError("results: expected at least one folder with a results.json, got none")
    merged = ReportData(Results())
    for folder in folders:
        _add_folder(merged, folder, is_member=folder in members)
    if not merged.results.rows and not merged.results.failures:
        raise UserError(f"results: {folders[0] / 'results.json'} has no rows")
    # Made again, because the indices over the rows are built at construction.
    return replace(merged)


def _add_folder(merged: ReportData, folder: Path, *, is_member: bool) -> None:
    # Here, so that no figure, table or file has to think of what names may hold.
    results = _printable(Results.read(folder))
    pictures = _printable(read_pictures(folder))
    earlier = set(merged.models)
    folder_name = printable(folder.resolve().name)
    models = _models(results.rows)
    for model in models:
        taken = earlier.union(models)
        if is_member and len(models) == 1 and folder_name not in taken:
            _rename(results, pictures, model, folder_name)
        elif model in earlier:
            _rename(results, pictures, model, _free_name(model, folder, taken))
    evaluated = set()
    for row in results.rows:
        evaluated.add((row.model, row.detector))
    # Pictures of other networks or detectors are left from an earlier evaluation.
    for picture in pictures:
        if (picture.model, picture.detector) in evaluated:
            merged.pictures.append(picture)
    for cell in results.cells:
        merged._cells.append((folder, cell))
    _add_recipes(merged, results, folder)
    merged.models_by_folder.append(_models(results.rows))
    names = ", ".join(_models(results.rows))
    merged.environments.append((names, results.environment))
    merged.results.extend(results)


def _add_recipes(merged: ReportData, results: Results, folder: Path) -> None:
    """Add the recipes of a folder that have several checkpoints, under names that are free."""
    taken = {*merged.models, *_models(results.rows), *merged.recipes}
    names: dict[str, str] = {}
    for index, summary in enumerate(results.summary):
        if len(summary.models) < 2:
            continue
        if summary.recipe not in names:
            name = summary.recipe
            if name in taken:
                name = _free_name(name, folder, taken)
            names[summary.recipe] = name
            taken.add(name)
            merged.recipes[name] = list(summary.models)
        results.summary[index] = replace(summary, recipe=names[summary.recipe])


def _printable(value: Any, *, lines: bool = False) -> Any:
    """Return records, lists and mappings with all texts as pages, figures and terminals take them.

    lines: keep line breaks, as of tracebacks and settings; names have none.
    """
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n"))) if lines else printable(value)
    if isinstance(value, list | tuple):
        return type(value)([_printable(inside, lines=lines) for inside in value])
    if isinstance(value, dict):
        changed = {}
        for name, inside in value.items():
            changed[_printable(name)] = _printable(inside, lines=lines)
        return changed
    if is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for entry in fields(value):
            inside = getattr(value, entry.name)
            changed[entry.name] = _printable(inside, lines=entry.name in _OF_LINES)
        return replace(value, **changed)
    return value  # numbers and arrays


def _models(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.model for row in rows))


def _free_name(model: str, folder: Path, taken: set[str]) -> str:
    folder_name = folder.resolve().name
    name = f"{model} ({folder_name})"
    count = 2
    while name in taken:
        name = f"{model} ({folder_name} {count})"
        count += 1
    return name


def _rename(results: Results, pictures: list[Picture], old: str, new: str) -> None:
    for name in _RECORDS_OF_MODELS:
        _rename_model(getattr(results, name), old, new)
    _rename_model(pictures, old, new)
    for index, summary in enumerate(results.summary):
        models = tuple(new if model == old else model for model in summary.models)
        results.summary[index] = replace(summary, models=models)
    for index, warning in enumerate(results.warnings):
        if warning.startswith(f"{old}, "):
            results.warnings[index] = new + warning[len(old) :]


def _rename_model(records: list[Any], old: str, new: str) -> None:
    for index, record in enumerate(records):
        if record.model == old:
            records[index] = replace(record, model=new)


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Return the rows of sets and those of means: a mean is the last row named after its group."""
    last: dict[tuple[str, ...], int] = {}
    for index, row in enumerate(rows):
        if row.ood == row.group:
            last[_mean_key(row)] = index
    mean_indices = set(last.values())
    sets = []
    means = []
    for index, row in enumerate(rows):
        if index in mean_indices:
            means.append(row)
        else:
            sets.append(row)
    return sets, means


def _mean_key(row: Row) -> tuple[str, ...]:
    return (row.model, row.detector, row.attack, row.attacked, row.id, row.group)


def _row_key(row: Row | Interval) -> tuple[str, ...]:
    return (row.model, row.detector, row.attack, row.attacked, row.id, row.ood, row.group)


def _read_scores(path: Path) -> NDArray[np.float64]:
    try:
        cell = read_cell(path)
    except FileNotFoundError as error:
        raise UserError(
            f"results: {path} is missing; evaluate again, which computes only what is missing"
        ) from error
    if "scores" not in cell.arrays:
        raise UserError(f"results: {path} lacks the array scores; expected a cell with scores")
    return np.asarray(cell.arrays["scores"], dtype=np.float64)
