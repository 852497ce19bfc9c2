"""From the store's cells to rows: nothing here computes a score."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_ood.attacks import Attack, Settings, Suite
from robust_ood.evaluation.fingerprints import code_version, fingerprint
from robust_ood.evaluation.plan import Plan, TestSet
from robust_ood.evaluation.records import METRICS, Accuracy, CellFiles, Interval, Row, Summary, Wins
from robust_ood.evaluation.store import Cell, Store
from robust_ood.metrics import bootstrap_intervals, ood_metrics
from robust_ood.randomness import generator

NO_ATTACK = Settings(norm="none", radius=0.0, steps=0, restarts=0)
_LEVEL = 0.95
_SAME = (
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
    """All scores of one set, `(N,)`, the seconds they took, and how many images each member of the
    attack won.
    """

    scores: Tensor
    seconds: float
    wins: dict[str, int]


@dataclass(frozen=True)
class Table:
    """Reads the cells of one plan; what is not there yet has no row.

    Args:
        plan: the network's cells.
        sets: the in-distribution first.
        attacks: by label.
        store: has the cells.
    """

    plan: Plan
    sets: Sequence[TestSet]
    attacks: Mapping[str, Attack]
    store: Store

    def column(self, detector: str, attack: str, place: int) -> Column | None:
        """Return the scores of a set, or None where a part is missing."""
        cells = [self.store.read(key) for key in self.plan.columns[detector, attack, place]]
        found = [cell for cell in cells if cell is not None]
        return _joined(found) if len(found) == len(cells) else None

    def rows(self) -> Iterator[tuple[Row, Tensor, Tensor]]:
        """Yield the rows of all detectors, each with its ID and OOD scores; those of averages are
        empty.
        """
        places = range(len(self.sets))
        for name in self.plan.subject.detectors:
            clean = [self.column(name, "none", place) for place in places]
            yield from self._with_means(self._compare(name, "none", "none", clean, clean, clean))
            for label in self.attacks:
                hit = [self.column(name, label, place) for place in places]
                for attacked, inliers, outliers in (
                    ("in", hit, clean),
                    ("out", clean, hit),
                    ("both", hit, hit),
                ):
                    yield from self._with_means(
                        self._compare(name, label, attacked, clean, inliers, outliers)
                    )

    def accuracies(self) -> list[Accuracy]:
        """Return the accuracy, clean and under each attack."""
        table = []
        for label in ("none", *self.attacks):
            right = self.column("", label, 0)
            if right is not None:
                accuracy, n = right.scores.double().mean().item(), len(right.scores)
                name, subject = self.sets[0].images.name, self.plan.subject.name
                attack = self.attacks.get(label)
                budget = (
                    attack.settings_on_classifiers()
                    if isinstance(attack, Suite)
                    else self._budget(label)
                )
                facts: dict[str, Any] = {
                    "n": n,
                    "accuracy": accuracy,
                    "seconds": right.seconds,
                    **budget,
                }
                table.append(Accuracy(model=subject, id=name, attack=label, **facts))
        return table

    def warnings(self) -> list[str]:
        """Return the alarms of every detector."""
        found = {}
        for name, key in self.plan.checks.items():
            cell = self.store.read(key)
            alarms = cell.about["warnings"] if cell is not None else ()
            found.update(
                dict.fromkeys(f"{self.plan.subject.name}, {name}: {alarm}" for alarm in alarms)
            )
        return list(found)

    def wins(self) -> list[Wins]:
        """Return who won how many images, for each attack that keeps an account of it."""
        table = []
        for detector, label, place in self.plan.columns:
            column = self.column(detector, label, place)
            if column is not None and column.wins:
                images, group = self.sets[place].images.name, self.sets[place].group
                subject, n = self.plan.subject.name, len(column.scores)
                table.append(Wins(subject, detector or None, label, images, group, n, column.wins))
        return table

    def files(self) -> list[CellFiles]:
        """Return where the scores lie; none for a store in memory."""
        table = []
        for (detector, label, place), keys in self.plan.columns.items():
            paths = [self.store.path(key) for key in keys if self.store.has(key)]
            files = tuple(path for path in paths if path is not None)
            if len(files) == len(keys):
                images, group = self.sets[place].images.name, self.sets[place].group
                table.append(
                    CellFiles(self.plan.subject.name, detector or None, label, images, group, files)
                )
        return table

    def precisions(self) -> dict[str, set[str]]:
        """Return, by precision of attacks' gradients, which detectors it was used on; "classifier"
        is the network.
        """
        found: dict[str, set[str]] = {}
        for (detector, _, _), keys in self.plan.columns.items():
            for cell in map(self.store.read, keys):
                for precision in cell.about.get("precisions", ()) if cell is not None else ():
                    found.setdefault(precision, set()).add(detector or "classifier")
        return found

    def _budget(self, label: str) -> Settings:
        return self.attacks[label].settings() if label in self.attacks else NO_ATTACK

    def _compare(
        self,
        detector: str,
        attack: str,
        attacked: str,
        clean: Sequence[Column | None],
        inliers: Sequence[Column | None],
        outliers: Sequence[Column | None],
    ) -> list[tuple[Row, Tensor, Tensor]]:
        """Return one row for each OOD set whose scores are there."""
        rows = []
        reference, own = clean[0], inliers[0]
        for part, other in zip(self.sets[1:], outliers[1:], strict=True):
            if reference is None or own is None or other is None:
                continue
            numbers: dict[str, Any] = ood_metrics(own.scores, other.scores, reference.scores)
            row = Row(
                model=self.plan.subject.name,
                detector=detector,
                attack=attack,
                attacked=attacked,
                id=self.sets[0].images.name,
                ood=part.images.name,
                group=part.group,
                n_id=len(own.scores),
                n_ood=len(other.scores),
                seconds=own.seconds + other.seconds,
                **self._budget(attack),
                **numbers,
            )
            rows.append((row, own.scores, other.scores))
        return rows

    def _with_means(
        self, rows: list[tuple[Row, Tensor, Tensor]]
    ) -> list[tuple[Row, Tensor, Tensor]]:
        """Add the mean over the near sets and over the far sets, where all of them are there."""
        means = []
        for group in ("near", "far"):
            members = [row for row, _, _ in rows if row.group == group]
            if members and len(members) == sum(part.group == group for part in self.sets):
                numbers = {
                    name: sum(getattr(row, name) for row in members) / len(members)
                    for name in METRICS
                }
                n_ood, seconds = (
                    sum(row.n_ood for row in members),
                    sum(row.seconds for row in members),
                )
                mean = replace(members[0], ood=group, n_ood=n_ood, seconds=seconds, **numbers)
                means.append((mean, torch.empty(0), torch.empty(0)))
        return rows + means


def interval(
    row: Row, inliers: Tensor, outliers: Tensor, samples: int, store: Store, *, new: bool
) -> Interval | None:
    """Return a row's bootstrap intervals, from the store where it has them, else computed where
    `new`, else None.
    """
    key = fingerprint(["interval", code_version("metrics"), samples, _LEVEL, inliers, outliers])
    cell = store.read(key)
    if cell is None and new:
        with store.claim(key, wait=True):
            cell = store.read(key)  # another process may just have written it
            if cell is None:
                found = bootstrap_intervals(
                    inliers, outliers, generator(0, "bootstrap"), samples, _LEVEL
                )
                cell = Cell({}, {"stage": "interval", **found})
                store.write(key, cell)
    if cell is None:
        return None
    bounds = {
        name: (float(cell.about[name][0]), float(cell.about[name][1]))
        for name in ("auroc", "fpr95")
    }
    names = ("model", "detector", "attack", "attacked", "id", "ood", "group")
    facts: dict[str, Any] = {**{name: getattr(row, name) for name in names}, **bounds}
    return Interval(level=_LEVEL, samples=samples, **facts)


def summarise(
    rows: Sequence[Row], accuracies: Sequence[Accuracy], recipes: Mapping[str, Sequence[str]]
) -> list[Summary]:
    """Return mean and sample standard deviation over the models of each recipe that has several."""
    table = []
    for recipe, models in recipes.items():
        for records, metrics in ((rows, METRICS), (accuracies, ("accuracy",))):
            own = [one for one in records if one.model in models] if len(models) > 1 else []
            for facts, members in _alike(own).items():
                if len(members) == len(models):
                    values = {name: [getattr(one, name) for one in members] for name in metrics}
                    mean = {name: statistics.fmean(numbers) for name, numbers in values.items()}
                    std = {name: statistics.stdev(numbers) for name, numbers in values.items()}
                    about: dict[str, Any] = dict(zip(_SAME, facts, strict=False))
                    table.append(
                        Summary(recipe=recipe, models=tuple(models), mean=mean, std=std, **about)
                    )
    return table


def _alike(records: Sequence[Row | Accuracy]) -> dict[tuple[Any, ...], list[Row | Accuracy]]:
    """Return records by all that models have in common.

    A group's mean may look like the row of a set that has the group's name; which of a model's rows
    it is tells them apart.
    """
    groups: dict[tuple[Any, ...], list[Row | Accuracy]] = {}
    seen: Counter[tuple[Any, ...]] = Counter()
    for one in records:
        facts = asdict(one)
        same = tuple(facts.get(name) for name in _SAME)
        groups.setdefault((*same, seen[one.model, same]), []).append(one)
        seen[one.model, same] += 1
    return groups


def _joined(cells: Sequence[Cell]) -> Column:
    wins: Counter[str] = Counter()
    for cell in cells:
        if "winners" in cell.arrays:
            members = cell.about["members"]
            counts = np.bincount(cell.arrays["winners"], minlength=len(members)).tolist()
            wins.update(dict(zip(members, counts, strict=True)))
    scores = torch.from_numpy(np.concatenate([cell.arrays["scores"] for cell in cells]))
    return Column(scores, sum(float(cell.about["seconds"]) for cell in cells), dict(wins))
