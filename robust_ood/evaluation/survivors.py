"""What is left of each detector under its worst attack: the lines of a one-page summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robust_ood.evaluation.records import METRICS, Accuracy, Row, Summary
from robust_ood.evaluation.results import Results

Numbers = Mapping[str, float]
"""Values by metric."""


@dataclass(frozen=True)
class Outcome:
    """The numbers of a detector, or of a classifier, under one attack.

    values: of one network, or means over checkpoints; then deviations is not empty. attack: the
    record that they are of.
    """

    attack: Row | Accuracy | Summary
    values: Numbers
    deviations: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Survivor:
    """A line: a network or recipe, its detector, the group of OOD sets, clean and worst outcomes.

    detector, group: empty for the accuracy of a classifier. checkpoints: of a recipe; else 1.
    """

    subject: str
    detector: str
    group: str
    checkpoints: int
    clean: Outcome | None
    worst: Outcome | None

    @property
    def rank(self) -> float:
        """The value that survivors are ranked by: the first metric of the worst outcome."""
        outcome = self.worst or self.clean
        assert outcome is not None
        return next(iter(outcome.values.values()))


def survivors(results: Results) -> list[Survivor]:
    """Return a line for each recipe or single network, detector and group, in their order."""
    outcomes: dict[tuple[str, str, str, int], dict[tuple[str, ...], Outcome]] = {}
    for summary in results.summary:
        if summary.ood == summary.group and summary.detector is not None:
            _add(outcomes, summary, summary.recipe, len(summary.models))
    covered = _in_recipes(results)
    for row in results.rows:
        # A group's mean is called like the group.
        if row.ood == row.group and row.model not in covered:
            _add(outcomes, row, row.model, 1)
    return list(_chosen(outcomes, "auroc"))


def accurate(results: Results) -> list[Survivor]:
    """Return a line for the accuracy of each recipe or single network."""
    outcomes: dict[tuple[str, str, str, int], dict[tuple[str, ...], Outcome]] = {}
    for summary in results.summary:
        if summary.detector is None:
            _add(outcomes, summary, summary.recipe, len(summary.models))
    covered = _in_recipes(results)
    for row in results.classification:
        if row.model not in covered:
            _add(outcomes, row, row.model, 1)
    return list(_chosen(outcomes, "accuracy"))


def _in_recipes(results: Results) -> set[str]:
    """Return the networks whose numbers are in the mean of a recipe."""
    covered: set[str] = set()
    for summary in results.summary:
        covered.update(summary.models)
    return covered


def _add(
    outcomes: dict[tuple[str, str, str, int], dict[tuple[str, ...], Outcome]],
    record: Any,
    subject: str,
    checkpoints: int,
) -> None:
    """Add the outcome of a record to its line; a later one of the same name replaces it."""
    key = (
        subject,
        getattr(record, "detector", None) or "",
        getattr(record, "group", None) or "",
        checkpoints,
    )
    if isinstance(record, Summary):
        outcome = Outcome(record, record.mean, record.std)
    elif isinstance(record, Row):
        outcome = Outcome(record, {name: getattr(record, name) for name in METRICS})
    else:
        outcome = Outcome(record, {"accuracy": record.accuracy})
    side = getattr(record, "attacked", None) or ("none" if record.attack == "none" else "both")
    outcomes.setdefault(key, {})[record.attack, side] = outcome


def _chosen(
    outcomes: Mapping[tuple[str, str, str, int], Mapping[tuple[str, ...], Outcome]], metric: str
) -> Iterator[Survivor]:
    for (subject, detector, group, checkpoints), by_attack in outcomes.items():
        clean = None
        attacked = []
        for (_, side), outcome in by_attack.items():
            if side == "none":
                clean = outcome
            elif side == "both":
                attacked.append(outcome)
        worst = None
        if attacked:
            worst = min(attacked, key=lambda outcome: outcome.values[metric])
        if clean is not None or worst is not None:
            yield Survivor(subject, detector, group, checkpoints, clean, worst)


def fitted(lines: Sequence[Survivor], most: int) -> list[Survivor]:
    """Return at most so many lines: all; or each detector's worst group; or of these the best."""
    if len(lines) <= most:
        return list(lines)
    worst: dict[tuple[str, str], Survivor] = {}
    for line in lines:
        key = (line.subject, line.detector)
        if key not in worst or line.rank < worst[key].rank:
            worst[key] = line
    best = sorted(worst.values(), key=lambda line: -line.rank)[:most]
    return [line for line in worst.values() if line in best]
