"""From the store's cells to records: nothing here computes a score."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_ood.attacks import Attack, Settings, Suite
from robust_ood.evaluation.certified import Brackets
from robust_ood.evaluation.results import (
    METRICS,
    Accuracy,
    CellFiles,
    Interval,
    Row,
    Summary,
    Wins,
)
from robust_ood.evaluation.scoring import TestSet
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import (
    LEVEL,
    AccuracyTask,
    IntervalTask,
    Model,
    SanityTask,
    ScoreTask,
)
from robust_ood.metrics import ood_metrics

NO_ATTACK = Settings(norm="none", radius=0.0, steps=0, restarts=0)
_RECORD_OF = ("model", "detector", "attack", "attacked", "id", "ood", "group")
_SHARED = (
    "detector",
    "attack",
    "attacked",
    "norm",
    "radius",
    "steps",
    "restarts",
    "id",
    "ood",
    "group",
)


class Column(NamedTuple):
    """All scores of one set, `(N,)`, the seconds they took, and images won by each member."""

    scores: Tensor
    seconds: float
    wins: dict[str, int]


class ScoredRow(NamedTuple):
    """A row with the ID and OOD scores behind it, `(N,)` and `(M,)`; those of a mean are empty."""

    row: Row
    inliers: Tensor
    outliers: Tensor


class ModelRecords:
    """The records of one model, read from the store; what is not there yet has none.

    Args:
        model: its tasks name the cells.
        sets: the in-distribution first.
        attacks: by label.
        store: has the cells.
    """

    def __init__(
        self,
        model: Model,
        sets: Sequence[TestSet],
        attacks: Mapping[str, Attack],
        store: Store,
    ) -> None:
        self.brackets = Brackets(model.tasks, attacks, store)
        self.model = model
        self.sets = sets
        self.attacks = attacks
        self.store = store
        # By detector ("" for the network), attack and position of the set, the keys of its chunks.
        self.keys: dict[tuple[str, str, int], list[str]] = {}
        for task in model.tasks:
            if isinstance(task, ScoreTask | AccuracyTask):
                for label, key in task.keys.items():
                    column = (label, task.attack, task.set_index)
                    self.keys.setdefault(column, []).append(key)

    def column(self, detector: str, attack: str, set_index: int) -> Column | None:
        """Return the scores of a set, or None where some are missing."""
        cells = []
        for key in self.keys[detector, attack, set_index]:
            cell = self.store.read(key)
            if cell is None:
                return None
            cells.append(cell)
        return _joined(cells)

    def rows(self) -> Iterator[ScoredRow]:
        """Yield the rows of all detectors, those of means after the sets that they are of."""
        for detector in self.model.detectors:
            clean = self._columns(detector, "none")
            rows = self._rows(detector, "none", "none", clean, clean, clean)
            yield from self._with_means(rows)
            for label in self.attacks:
                hit = self._columns(detector, label)
                sides = {"in": (hit, clean), "out": (clean, hit), "both": (hit, hit)}
                for attacked, (inliers, outliers) in sides.items():
                    rows = self._rows(detector, label, attacked, clean, inliers, outliers)
                    yield from self._with_means(rows)

    def accuracies(self) -> list[Accuracy]:
        """Return the accuracy, clean and under each attack."""
        records = []
        for label in ("none", *self.attacks):
            right = self.column("", label, 0)
            if right is None:
                continue
            attack = self.attacks.get(label)
            budget = self._budget(label)
            if isinstance(attack, Suite):
                budget = attack.settings_on_classifiers()
            record = Accuracy(
                model=self.model.name,
                id=self.sets[0].images.name,
                attack=label,
                n=len(right.scores),
                accuracy=right.scores.double().mean().item(),
                seconds=right.seconds,
                **budget,
            )
            records.append(record)
        return records

    def warnings(self) -> list[str]:
        """Return the alarms of every detector, each once."""
        lines = []
        for task in self.model.tasks:
            if isinstance(task, SanityTask):
                for label, key in task.keys.items():
                    for alarm in self._alarms(key):
                        lines.append(f"{self.model.name}, {label}: {alarm}")
        return list(dict.fromkeys(lines))

    def wins(self) -> list[Wins]:
        """Return who won how many images, for each attack that keeps an account of it."""
        records = []
        for detector, label, set_index in self.keys:
            column = self.column(detector, label, set_index)
            if column is None or not column.wins:
                continue
            record = Wins(
                model=self.model.name,
                detector=detector or None,
                attack=label,
                images=self.sets[set_index].images.name,
                group=self.sets[set_index].group,
                n=len(column.scores),
                wins=column.wins,
            )
            records.append(record)
        return records

    def files(self) -> list[CellFiles]:
        """Return where the scores lie; none for a store in memory."""
        records = []
        for (detector, label, set_index), keys in self.keys.items():
            files = self._paths(keys)
            if len(files) < len(keys):
                continue
            record = CellFiles(
                model=self.model.name,
                detector=detector or None,
                attack=label,
                images=self.sets[set_index].images.name,
                group=self.sets[set_index].group,
                files=tuple(files),
            )
            records.append(record)
        return records

    def precisions(self) -> dict[str, set[str]]:
        """Return, by precision of attacks' gradients, the detectors that it was used on.

        "classifier" is the network itself.
        """
        users: dict[str, set[str]] = {}
        for (detector, _, _), keys in self.keys.items():
            for key in keys:
                cell = self.store.read(key)
                if cell is not None:
                    for precision in cell.about.get("precisions", ()):
                        users.setdefault(precision, set()).add(detector or "classifier")
        return users

    def _alarms(self, key: str) -> list[str]:
        cell = self.store.read(key)
        if cell is None:
            return []
        alarms: list[str] = cell.about["warnings"]
        return alarms

    def _paths(self, keys: Sequence[str]) -> list[str]:
        """Return where the cells lie that are stored in files."""
        paths = []
        for key in keys:
            path = self.store.path(key)
            if path is not None and self.store.has(key):
                paths.append(path)
        return paths

    def _budget(self, label: str) -> Settings:
        if label not in self.attacks:
            return NO_ATTACK
        return self.attacks[label].settings()

    def _columns(self, detector: str, attack: str) -> list[Column | None]:
        return [self.column(detector, attack, index) for index in range(len(self.sets))]

    def _rows(
        self,
        detector: str,
        attack: str,
        attacked: str,
        clean: Sequence[Column | None],
        inliers: Sequence[Column | None],
        outliers: Sequence[Column | None],
    ) -> list[ScoredRow]:
        """Return one row for each OOD set whose scores are there."""
        rows: list[ScoredRow] = []
        reference = clean[0]
        near_side = inliers[0]
        if reference is None or near_side is None:
            return rows
        for index, test_set in enumerate(self.sets[1:], 1):
            far_side = outliers[index]
            if far_side is None:
                continue
            rates: dict[str, Any] = ood_metrics(near_side.scores, far_side.scores, reference.scores)
            row = Row(
                model=self.model.name,
                detector=detector,
                attack=attack,
                attacked=attacked,
                id=self.sets[0].images.name,
                ood=test_set.images.name,
                group=test_set.group,
                n_id=len(near_side.scores),
                n_ood=len(far_side.scores),
                seconds=near_side.seconds + far_side.seconds,
                **self._budget(attack),
                **rates,
                **self.brackets.fields(detector, attack, attacked, index),
            )
            rows.append(ScoredRow(row, near_side.scores, far_side.scores))
        return rows

    def _with_means(self, rows: list[ScoredRow]) -> list[ScoredRow]:
        """Add the mean over the near sets and over the far sets, where all of them are there."""
        sets = Counter(test_set.group for test_set in self.sets)
        means = []
        for group in ("near", "far"):
            members = [scored.row for scored in rows if scored.row.group == group]
            if members and len(members) == sets[group]:
                means.append(ScoredRow(_mean(members, group), torch.empty(0), torch.empty(0)))
        return rows + means


def _mean(members: Sequence[Row], group: str) -> Row:
    """Return the row of a group: means of the rates, sums of images and seconds."""
    rates = {}
    for name in METRICS:
        # Not `fmean`, whose last digit may differ: published numbers stay the same.
        rates[name] = sum(getattr(row, name) for row in members) / len(members)
    n_ood = 0
    seconds = 0.0
    for row in members:
        n_ood += row.n_ood
        seconds += row.seconds
    bounds: dict[str, Any] = {}
    if all(row.lower is not None for row in members):
        for name in ("lower", "fpr95_upper", "detection_error_upper"):
            bounds[name] = sum(getattr(row, name) for row in members) / len(members)
        # The bounds of all sets hold together unless one of them fails.
        bounds["alpha"] = min(1.0, sum(row.alpha for row in members))
    return replace(members[0], ood=group, n_ood=n_ood, seconds=seconds, **rates, **bounds)


def interval_of(row: Row, task: IntervalTask, store: Store) -> Interval | None:
    """Return a row's bootstrap intervals, or None where they have not been computed."""
    cell = store.read(task.name)
    if cell is None:
        return None
    fields: dict[str, Any] = {}
    for name in _RECORD_OF:
        fields[name] = getattr(row, name)
    for name in ("auroc", "fpr95"):
        low, high = cell.about[name]
        fields[name] = (float(low), float(high))
    return Interval(level=LEVEL, samples=task.samples, **fields)


def summarise(
    rows: Sequence[Row], accuracies: Sequence[Accuracy], recipes: Mapping[str, Sequence[str]]
) -> list[Summary]:
    """Return mean and sample standard deviation over the models of each recipe with several."""
    records: list[Summary] = []
    for recipe, models in recipes.items():
        if len(models) > 1:
            records += _summaries(recipe, models, rows, METRICS)
            records += _summaries(recipe, models, accuracies, ("accuracy",))
    return records


def _summaries(
    recipe: str,
    models: Sequence[str],
    records: Sequence[Row | Accuracy],
    metrics: Sequence[str],
) -> Iterator[Summary]:
    of_recipe = [record for record in records if record.model in models]
    for shared, members in _alike(of_recipe).items():
        if len(members) < len(models):
            continue
        mean = {}
        std = {}
        for name in metrics:
            values = [getattr(member, name) for member in members]
            mean[name] = statistics.fmean(values)
            std[name] = statistics.stdev(values)
        fields: dict[str, Any] = dict(zip(_SHARED, shared, strict=False))
        yield Summary(recipe=recipe, models=tuple(models), mean=mean, std=std, **fields)


def _alike(records: Sequence[Row | Accuracy]) -> dict[tuple[Any, ...], list[Row | Accuracy]]:
    """Return records by all that models have in common.

    A group's mean may look like the row of a set that has the group's name; which of a model's rows
    it is tells them apart.
    """
    groups: dict[tuple[Any, ...], list[Row | Accuracy]] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    for record in records:
        fields = asdict(record)
        shared = tuple(map(fields.get, _SHARED))
        groups.setdefault((*shared, seen[record.model, shared]), []).append(record)
        seen[record.model, shared] += 1
    return groups


def _joined(cells: Sequence[Cell]) -> Column:
    """Return the cells of a set's chunks as one column."""
    wins: Counter[str] = Counter()
    seconds = 0.0
    scores = []  # (n,) each
    for cell in cells:
        scores.append(cell.arrays["scores"])
        seconds += float(cell.about["seconds"])
        if "winners" in cell.arrays:
            members = cell.about["members"]
            counts = np.bincount(cell.arrays["winners"], minlength=len(members)).tolist()
            wins.update(dict(zip(members, counts, strict=True)))
    return Column(torch.from_numpy(np.concatenate(scores)), seconds, dict(wins))
