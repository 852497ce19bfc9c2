"""The plan of an evaluation: which cells there are, under which keys, and how each is computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from robust_ood.attacks import Attack
from robust_ood.attacks.objectives import Direction
from robust_ood.data import ImageSet
from robust_ood.detectors import Detector
from robust_ood.evaluation.batches import Chunk
from robust_ood.evaluation.cells import Machine, sharing
from robust_ood.evaluation.fingerprints import code_version, fingerprint
from robust_ood.evaluation.jobs import Job
from robust_ood.evaluation.store import Cell

FEW = 16  # images of each side that the sanity checks use
_CHECK_WORK = 32 * 200.0  # of the sanity checks, in clean scores
_OF_LABELS = ""  # stands for the detector where a cell is of the network itself


class TestSet(NamedTuple):
    """Images to score: the in-distribution (`group` "id") or an OOD set, and what an attack does to
    their scores.
    """

    images: ImageSet
    group: str
    chunks: list[Chunk]

    @property
    def direction(self) -> Direction:
        """+1 where an attack lowers scores, -1 where it raises them."""
        return 1 if self.group == "id" else -1


@dataclass(frozen=True)
class Subject:
    """A network and its detectors, fitted, under the name that rows carry."""

    name: str
    net: nn.Module
    detectors: Mapping[str, Detector]


@dataclass
class Plan:
    """Jobs, in the order in which results become complete, and where their cells are.

    columns: by detector ("" for the network's right answers), attack ("none" without) and place in
    the list of sets, the keys of the chunks. checks: by detector, the key of its alarms.
    """

    subject: Subject
    jobs: list[Job] = field(default_factory=list)
    columns: dict[tuple[str, str, int], list[str]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)


def make_plan(
    subject: Subject,
    sets: Sequence[TestSet],
    attacks: Mapping[str, Attack],
    machine: Machine,
    few: tuple[Chunk, Chunk] | None,
    before: Callable[[], None],
) -> Plan:
    """Return the plan for one network.

    Args:
        subject: the network and its detectors.
        sets: the in-distribution first.
        attacks: by label.
        machine: computes.
        few: the images of the sanity checks; None leaves those out.
        before: called before anything is computed; brings the network to its device.
    """
    net = fingerprint(subject.net)
    marks = {name: fingerprint(d, {id(subject.net): net}) for name, d in subject.detectors.items()}
    budgets = {"none": "", **{label: fingerprint(attack) for label, attack in attacks.items()}}
    answers = [
        fingerprint(part.images.read_labels(torch.arange(part.start, part.stop)))
        for part in sets[0].chunks
    ]
    plan = Plan(subject)

    def add(names: Sequence[str], label: str, place: int) -> None:
        """Add the jobs that score detectors on the same images of a set."""
        group, attack = {name: subject.detectors[name] for name in names}, attacks.get(label)
        side, work = (
            sets[place].direction if attack else 0,
            _work(attack) + (len(group) if attack else 0),
        )
        for chunk in sets[place].chunks:
            keys = {
                name: fingerprint(
                    ["score", code_version(), marks[name], budgets[label], side, chunk.content]
                )
                for name in names
            }
            for name, key in keys.items():
                plan.columns.setdefault((name, label, place), []).append(key)

            def compute(
                missing: Sequence[str],
                chunk: Chunk = chunk,
                direction: Direction = sets[place].direction,
            ) -> Mapping[str, Cell]:
                before()
                return _noted(
                    machine.score({n: group[n] for n in missing}, chunk, attack, direction),
                    chunk,
                    attack,
                )

            own = (
                keys[names[0]]
                if len(names) == 1
                else fingerprint([net, budgets[label], side, chunk.content])
            )
            title = _title(subject.name, names if attack else (), label, chunk)
            size = chunk.stop - chunk.start
            plan.jobs.append(
                Job(
                    own,
                    title,
                    subject.name,
                    label,
                    "score",
                    keys,
                    work * size / len(names),
                    compute,
                )
            )

    def classify(label: str) -> None:
        attack = attacks.get(label)
        for chunk, labels in zip(sets[0].chunks, answers, strict=True):
            key = fingerprint(
                ["classify", code_version(), net, budgets[label], chunk.content, labels]
            )
            plan.columns.setdefault((_OF_LABELS, label, 0), []).append(key)

            def compute(_: Sequence[str], chunk: Chunk = chunk) -> Mapping[str, Cell]:
                before()
                return _noted(
                    {_OF_LABELS: machine.classify(subject.net, chunk, attack)}, chunk, attack
                )

            title, work = (
                _title(subject.name, ("accuracy",), label, chunk),
                _work(attack) * (chunk.stop - chunk.start),
            )
            keys = {_OF_LABELS: key}
            plan.jobs.append(Job(key, title, subject.name, label, "classify", keys, work, compute))

    def check(name: str, inliers: Chunk, outliers: Chunk) -> None:
        code = code_version("evaluation/sanity.py")
        key = fingerprint(["check", code, marks[name], budgets, inliers.content, outliers.content])
        plan.checks[name] = key

        def compute(_: Sequence[str]) -> Mapping[str, Cell]:
            before()
            return {
                name: machine.check(subject.detectors[name], inliers, outliers, attacks.values())
            }

        title, work = f"{subject.name}: sanity of {name}", _CHECK_WORK * max(1, len(attacks))
        plan.jobs.append(Job(key, title, subject.name, "none", "check", {name: key}, work, compute))

    classify("none")
    places = range(len(sets)) if subject.detectors else ()
    for place in places:
        add(list(subject.detectors), "none", place)
    for label, attack in attacks.items():
        classify(label)
        for names in _groups(attack, subject.detectors):
            for place in places:
                add(names, label, place)
    if few is not None:
        for name in subject.detectors:
            check(name, *few)
    return plan


def _groups(attack: Attack, detectors: Mapping[str, Detector]) -> list[list[str]]:
    """Return the labels of detectors, those together on which the attack proposes the same
    images.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, detector in detectors.items():
        groups.setdefault(sharing(attack, detector) or name, []).append(name)
    return list(groups.values())


def _work(attack: Attack | None) -> float:
    """Return how long an image takes, in clean scores."""
    if attack is None:
        return 1
    settings = attack.settings()
    return 1 + 3.0 * settings["steps"] * settings["restarts"]


def _title(model: str, names: Sequence[str], label: str, chunk: Chunk) -> str:
    what = ", ".join(names) or "clean scores"
    under = "" if label == "none" else f" under {label}"
    return f"{model}: {what}{under} on {chunk.images.name} {chunk.start}-{chunk.stop}"


def _noted(cells: Mapping[str, Cell], chunk: Chunk, attack: Attack | None) -> Mapping[str, Cell]:
    """Return the cells with what they are of, for who reads them by themselves: images, attack, and
    this code.
    """
    where: dict[str, Any] = {"images": chunk.images.name, "start": chunk.start, "stop": chunk.stop}
    where |= {
        "code": code_version(),
        "settings": dict(attack.settings()) if attack is not None else {},
    }
    return {name: Cell(cell.arrays, {**where, **cell.about}) for name, cell in cells.items()}
