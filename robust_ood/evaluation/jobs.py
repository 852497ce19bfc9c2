"""Jobs: what is missing in the store is computed, once, by whichever process comes first."""

from __future__ import annotations

import os
import platform
import traceback
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from robust_ood.evaluation.progress import Progress
from robust_ood.evaluation.records import Failure
from robust_ood.evaluation.store import Cell, Store


@dataclass(frozen=True)
class Job:
    """Cells that are computed together.

    Args:
        name: what processes that share a store call it; free of blanks.
        title: what a user is told.
        model: whose cells these are.
        attack: label of the attack, "none" without one.
        stage: "fit", "score", "classify" or "check".
        keys: the cells' keys, by the label of their detector (of the network itself: "").
        work: how long one of the cells takes, in clean scores of one image.
        compute: labels to their cells; given all those that are missing.
    """

    name: str
    title: str
    model: str
    attack: str
    stage: str
    keys: Mapping[str, str]
    work: float
    compute: Callable[[Sequence[str]], Mapping[str, Cell]]

    def missing(self, store: Store, failed: Container[str] = ()) -> list[str]:
        """Return the labels whose cells are to be computed."""
        return [
            label for label, key in self.keys.items() if label not in failed and not store.has(key)
        ]


@dataclass
class Runner:
    """Runs jobs and remembers what failed, which is reported and leaves the rest alone.

    computed: how many cells this process computed.
    """

    store: Store
    progress: Progress
    failures: list[Failure] = field(default_factory=list)
    computed: int = 0

    def run(self, jobs: Iterable[Job]) -> None:
        """Compute what is missing; then wait for what other processes compute."""
        left = []
        for job in jobs:
            missing = job.missing(self.store)
            if missing:
                self.progress.expect(job.work * len(missing))
                left.append((job, len(missing)))
        for wait in (False, True):
            later = []
            for job, count in left:
                with self.store.claim(job.name, wait=wait) as mine:
                    if not mine:
                        later.append((job, count))
                        continue
                    self._run(job)
                self.progress.done(job.work * count)
            left = later

    def left(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs that have cells which are neither stored nor settled by a failure."""
        return [job for job in jobs if self._wanted(job)]

    def _wanted(self, job: Job) -> list[str]:
        return job.missing(
            self.store, {one.detector or "" for one in self.failures if _concerns(one, job)}
        )

    def _run(self, job: Job) -> None:
        missing = self._wanted(job)
        if missing:
            self.progress.begin(job.title)
            self._attempt(job, missing)

    def _attempt(self, job: Job, labels: Sequence[str]) -> None:
        try:
            cells = job.compute(labels)
        except (
            Exception
        ) as error:  # whatever a detector of the user's raises concerns that detector alone
            if len(labels) == 1:
                self._note(job, labels[0], error)
                return
            for label in labels:  # one by one, to find out whose mistake it is
                self._attempt(job, [label])
            return
        for label, cell in cells.items():
            about = {
                "model": job.model,
                "detector": label or None,
                "attack": job.attack,
                "stage": job.stage,
            }
            about["process"] = f"{platform.node()}:{os.getpid()}"
            self.store.write(job.keys[label], Cell(cell.arrays, {**about, **cell.about}))
            self.computed += 1

    def _note(self, job: Job, label: str, error: Exception) -> None:
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"
        trace = "".join(traceback.format_exception(error))
        self.failures.append(Failure(job.model, label or None, job.attack, job.stage, line, trace))


def _concerns(failure: Failure, job: Job) -> bool:
    """Whether a failure settles a job: another chunk of the same, or what needs the clean scores
    that failed.
    """
    if failure.model != job.model:
        return False
    return failure.attack in ("none", job.attack) and failure.stage in ("score", job.stage)
