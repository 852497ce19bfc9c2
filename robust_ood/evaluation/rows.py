"""From the store's cells to records: nothing here computes a score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from robust_ood.attacks import Attack, Settings
from robust_ood.attacks.quantised import suite_of
from robust_ood.evaluation.certified import Brackets
from robust_ood.evaluation.columns import POOLED, Column, Spectrum, joined, pooled, spectra_of
from robust_ood.evaluation.results import (
    METRICS,
    Accuracy,
    CellFiles,
    Interval,
    Row,
    Wins,
)
from robust_ood.evaluation.scoring import TestSet
from robust_ood.evaluation.settled import threshold_set
from robust_ood.evaluation.store import Store
from robust_ood.evaluation.tasks import (
    AccuracyTask,
    Model,
    SanityTask,
    ScoreTask,
)
from robust_ood.evaluation.transfer_rows import TransferTask
from robust_ood.evaluation.universal_fits import UniversalTask
from robust_ood.metrics import (
    auroc_interval,
    deployed_rates,
    deployed_threshold,
    fpr_interval,
    mean_rate_interval,
    ood_metrics,
    rate_interval,
)

LEVEL = 0.95  # of the intervals

NO_ATTACK = Settings(norm="none", radius=0.0, steps=0, restarts=0)
_OOD = ("near", "far")
_RECORD_OF = ("model", "detector", "attack", "attacked", "id", "ood", "group")


class ScoredRow(NamedTuple):
    """A row with the scores behind it: of the ID images `(N,)`, of each OOD set `(M,)`."""

    row: Row
    inliers: Tensor
    outliers: tuple[Tensor, ...]


class Threshold(NamedTuple):
    """The threshold of a detector, and the name of the clean images of which it accepts 95 %."""

    value: float
    images: str


class ModelRecords:
    """The records of one model, read from the store; what is not there yet has none.

    Args:
        model: its tasks name the cells.
        sets: the in-distribution first, validation images (group "validation") last.
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
        self.ood_sets = [index for index, images in enumerate(sets) if images.group in _OOD]
        self.attacks = attacks
        self.store = store
        # By detector ("" for the network), attack and position of the set, the keys of its chunks.
        self.keys: dict[tuple[str, str, int], list[str]] = {}
        for task in model.tasks:
            if isinstance(task, ScoreTask | AccuracyTask | TransferTask):
                for label, key in task.keys.items():
                    column = (label, task.attack, task.set_index)
                    self.keys.setdefault(column, []).append(key)
        scored = {set_index for _, _, set_index in self.keys}
        self.spectra = spectra_of(sets, scored)

    def column(self, detector: str, attack: str, set_index: int) -> Column | None:
        """Return the scores of a set, or None where some are missing."""
        cells = []
        keys = self.keys.get((detector, attack, set_index), [])
        for key in keys:
            cell = self.store.read(key)
            if cell is None:
                return None
            cells.append(cell)
        return joined(cells) if cells else None

    def rows(self) -> Iterator[ScoredRow]:
        """Yield the rows of all detectors, those of means after the sets that they are of."""
        for detector in self.model.detectors:
            clean = self._columns(detector, "none")
            threshold = self.threshold(detector)
            if threshold is None:
                continue
            for spectrum in self.spectra:
                rows = self._rows(spectrum, detector, "none", "none", threshold, clean, clean)
                yield from self._with_means(rows)
            for label in self.attacks:
                hit = self._columns(detector, label)
                sides = {"in": (hit, clean), "out": (clean, hit), "both": (hit, hit)}
                for attacked, (inliers, outliers) in sides.items():
                    for spectrum in self.spectra:
                        rows = self._rows(
                            spectrum, detector, label, attacked, threshold, inliers, outliers
                        )
                        yield from self._with_means(rows)

    def threshold(self, detector: str) -> Threshold | None:
        """Return a detector's threshold, or None where the scores that set it are missing."""
        index = threshold_set(self.sets)
        column = self.column(detector, "none", index)
        if column is None:
            return None
        return Threshold(deployed_threshold(column.scores), self.sets[index].images.name)

    def shifted_accuracies(self) -> list[Accuracy]:
        """Return the accuracy on each set of shifted inliers that has labels."""
        records = []
        for index, images in enumerate(self.sets):
            if images.group == "shifted":
                records += self.accuracies(index)
        return records

    def accuracies(self, set_index: int = 0) -> list[Accuracy]:
        """Return the accuracy on a set, clean and under each attack."""
        records = []
        for label in ("none", *self.attacks):
            if ("", label, set_index) not in self.keys:
                continue  # the network is no classifier
            right = self.column("", label, set_index)
            if right is None:
                continue
            attack = self.attacks.get(label)
            budget = self._budget(label)
            suite = suite_of(attack)
            if suite is not None:
                budget = suite.settings_on_classifiers()
            record = Accuracy(
                model=self.model.name,
                id=self.sets[set_index].images.name,
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
            if isinstance(task, SanityTask | UniversalTask):
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
                saved=self._saved(detector, label, column),
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

    def _saved(self, detector: str, label: str, column: Column) -> float:
        """Return the share of a suite's steps and queries that a column was spared."""
        suite = suite_of(self.attacks[label])
        if not detector or suite is None or not column.attempts:
            return 0.0
        costs = suite.costs(self.model.detectors[detector])
        spent = sum(column.attempts.get(name, 0) * cost for name, cost in costs.items())
        whole = len(column.scores) * sum(costs.values())
        return float(1 - spent / whole)

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

    def _columns(self, detector: str, attack: str) -> dict[int, Column | None]:
        """Return the scores of all inliers and of the OOD sets, by the positions of the sets."""
        columns = {}
        for index in (*self.spectra[-1].inliers, *self.ood_sets):
            columns[index] = self.column(detector, attack, index)
        return columns

    def _rows(
        self,
        spectrum: Spectrum,
        detector: str,
        attack: str,
        attacked: str,
        threshold: Threshold,
        inliers: Mapping[int, Column | None],
        outliers: Mapping[int, Column | None],
    ) -> list[ScoredRow]:
        """Return one row for each OOD set whose scores are there."""
        rows: list[ScoredRow] = []
        near_side = pooled([inliers[index] for index in spectrum.inliers])
        if near_side is None:
            return rows
        for index in self.ood_sets:
            far_side = outliers[index]
            if far_side is None:
                continue
            test_set = self.sets[index]
            rates: dict[str, Any] = ood_metrics(near_side.scores, far_side.scores)
            rates |= deployed_rates(threshold.value, near_side.scores, far_side.scores)
            row = Row(
                model=self.model.name,
                detector=detector,
                attack=attack,
                attacked=attacked,
                id=spectrum.name,
                ood=test_set.images.name,
                group=spectrum.prefix + test_set.group,
                n_id=len(near_side.scores),
                n_ood=len(far_side.scores),
                seconds=near_side.seconds + far_side.seconds,
                threshold=threshold.value,
                threshold_set=threshold.images,
                **self._budget(attack),
                **rates,
                **self._bounds(spectrum, detector, attack, attacked, index),
            )
            rows.append(ScoredRow(row, near_side.scores, (far_side.scores,)))
        return rows

    def _bounds(
        self, spectrum: Spectrum, detector: str, attack: str, attacked: str, index: int
    ) -> dict[str, Any]:
        """Return the certificate's fields of a row; none covers shifted inliers."""
        if spectrum.prefix:
            return {}
        return self.brackets.fields(detector, attack, attacked, index)

    def _with_means(self, rows: list[ScoredRow]) -> list[ScoredRow]:
        """Add the mean over the near sets and over the far sets, where all of them are there."""
        sets = Counter(test_set.group for test_set in self.sets)
        means = []
        for group in dict.fromkeys(scored.row.group for scored in rows):
            members = [scored for scored in rows if scored.row.group == group]
            if len(members) == sets[group.removeprefix("full-")]:
                mean = _mean([scored.row for scored in members], group)
                outliers = tuple(scored.outliers[0] for scored in members)
                means.append(ScoredRow(mean, members[0].inliers, outliers))
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


def interval_of(scored: ScoredRow) -> Interval:
    """Return the intervals of a row's rates; of a mean over sets, that of the means."""
    row, inliers, outliers = scored
    fields: dict[str, Any] = {}
    for name in _RECORD_OF:
        fields[name] = getattr(row, name)
    # A threshold that was set on the tested images depends on their draw, too.
    if row.threshold is not None and row.threshold_set not in row.id.split(POOLED):
        accepted = int((inliers.double() >= row.threshold).sum())
        fields["tpr_deployed"] = rate_interval(accepted, len(inliers), LEVEL)
        counts = [int((scores.double() >= row.threshold).sum()) for scores in outliers]
        totals = [len(scores) for scores in outliers]
        fields["fpr_deployed"] = mean_rate_interval(counts, totals, LEVEL)
    return Interval(
        level=LEVEL,
        auroc=auroc_interval(inliers, outliers, LEVEL),
        fpr95=fpr_interval(inliers, outliers, level=LEVEL),
        **fields,
    )
