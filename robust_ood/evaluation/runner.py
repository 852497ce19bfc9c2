"""Runs tasks: what is missing in the store is computed, once, by whichever process comes first."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from robust_ood.evaluation.results import Failure
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import Task
from robust_ood.evaluation.terminal import Progress


@dataclass
class Runner:
    """Runs tasks and remembers what failed, which is reported and leaves the rest alone.

    computed: how many cells this process computed.
    """

    store: Store
    progress: Progress
    failures: list[Failure] = field(default_factory=list)
    computed: int = 0

    def run(self, tasks: Iterable[Task]) -> None:
        """Compute what is missing; then wait for what other processes compute."""
        waiting = []
        for task in tasks:
            missing = task.missing(self.store)
            if missing:
                self.progress.expect(task.work * len(missing))
                waiting.append((task, len(missing)))
        # First what no other process has claimed, then the rest.
        for wait in (False, True):
            claimed_by_others = []
            for task, count in waiting:
                with self.store.claim(task.name, task.title, wait=wait) as claimed:
                    if not claimed:
                        claimed_by_others.append((task, count))
                        continue
                    self._run(task)
                self.progress.done(task.work * count)
            waiting = claimed_by_others

    def unfinished(self, tasks: Iterable[Task]) -> list[Task]:
        """Return the tasks that have cells which are neither stored nor settled by a failure."""
        return [task for task in tasks if self._missing(task)]

    def _missing(self, task: Task) -> list[str]:
        failed = set()
        for failure in self.failures:
            if _settles(failure, task):
                failed.add(failure.detector or "")
        return task.missing(self.store, failed)

    def _run(self, task: Task) -> None:
        missing = self._missing(task)
        if missing:
            self.progress.begin(task.title)
            self._attempt(task, missing)

    def _attempt(self, task: Task, labels: Sequence[str]) -> None:
        try:
            cells = task.run(labels)
        except Exception as error:  # what a user's detector raises concerns that detector alone
            if len(labels) == 1:
                self._note(task, labels[0], error)
                return
            for label in labels:  # one by one, to find out which of them fails
                self._attempt(task, [label])
            return
        for label, cell in cells.items():
            if label not in task.missing(self.store):
                continue  # this process stood still, and another took its task over
            provenance = {
                "model": task.model,
                "detector": label or None,
                "attack": task.attack,
                "stage": task.stage,
                "process": f"{platform.node()}:{os.getpid()}",
            }
            cell = Cell(cell.arrays, {**provenance, **cell.about})
            for key, part in task.stored(label, cell).items():
                self.store.write(key, part)
            self.computed += 1

    def _note(self, task: Task, label: str, error: Exception) -> None:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        trace = "".join(traceback.format_exception(error))
        failure = Failure(task.model, label or None, task.attack, task.stage, line, trace)
        self.failures.append(failure)


def _settles(failure: Failure, task: Task) -> bool:
    """Whether a failure settles a task: another chunk of the same, or what needs clean scores."""
    if failure.model != task.model:
        return False
    return failure.attack in ("none", task.attack) and failure.stage in ("score", task.stage)
