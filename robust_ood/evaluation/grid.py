"""The grid: every network's detectors against every attack on every OOD set, each cell computed
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_ood.attacks import Attack
from robust_ood.data import OODData
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.batches import CHUNK, Batches, Chunk, chunks
from robust_ood.evaluation.cells import Machine
from robust_ood.evaluation.checks import check_attacks, check_count
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.fitting import fit_missing, missing_sources
from robust_ood.evaluation.jobs import Runner
from robust_ood.evaluation.plan import FEW, Plan, Subject, TestSet, make_plan
from robust_ood.evaluation.progress import Progress
from robust_ood.evaluation.results import Results, describe_environment
from robust_ood.evaluation.rows import Table, interval
from robust_ood.evaluation.store import FolderStore, Store


def evaluate(
    net: nn.Module,
    *,
    detectors: Mapping[str, Detector],
    attacks: Mapping[str, Attack],
    data: OODData,
    model: str = "model",
    limit: int | None = None,
    device: torch.device | str = "cpu",
    checks: bool = True,
    intervals: int = 1000,
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> Results:
    """Score every detector on clean and attacked images and return the results.

    Args:
        net: the classifier, for its accuracy.
        detectors: detectors by label; those not fitted yet are fitted on the training images of
            `data`.
        attacks: attacks by label; each goes through the detector that it is scored on.
        data: the test part is the in-distribution; `near` and `far` are the OOD sets.
        model: the name that rows carry.
        limit: use only the first so many images of each set.
        device: where to compute.
        checks: also look, on a few images, for signs that an attack failed for a reason other than
            a robust detector.
        intervals: resamples of the bootstrap intervals; 0 leaves them out.
        folder: where cells are kept as soon as they are computed, so that a second call computes
            only what is missing; None keeps them in memory until the call ends. `Results.write`
            writes the results themselves.
        progress: told what is computed.

    Returns:
        The results. A detector that cannot be fitted, attacked or scored is in their `failures`;
        the rest goes on.

    Raises:
        UserError: no OOD set, no detector, images of different sizes, a detector to fit without
            training images.
    """
    store = Store() if folder is None else FolderStore(Path(folder))
    grid = Grid(data, attacks, store, limit=limit, device=device, checks=checks, progress=progress)
    grid.add(model, net, detectors)
    grid.compute()
    return grid.results(intervals)


class Grid:
    """Networks, detectors, attacks and sets whose scores lie in one store.

    Args:
        data, attacks, limit, device, checks, progress: as in `evaluate`.
        store: where cells are kept.
        batch_size: images of a batch, halved where they do not fit into memory. None begins on a
            GPU with a whole chunk and on the CPU with `data.evaluation_batch_size`.
        chunk: images of a cell.

    Raises:
        UserError: no OOD set, a number of images below 1.
    """

    def __init__(
        self,
        data: OODData,
        attacks: Mapping[str, Attack],
        store: Store,
        *,
        limit: int | None = None,
        device: torch.device | str = "cpu",
        checks: bool = True,
        progress: Progress | None = None,
        batch_size: int | None = None,
        chunk: int = CHUNK,
    ) -> None:
        for field, number in (("limit", limit), ("batch_size", batch_size), ("chunk", chunk)):
            check_count(field, number)
        check_attacks(attacks)
        self.data, self.attacks, self.store, self.limit = data, attacks, store, limit
        self.device, self.checks = torch.device(device), checks
        start = chunk if self.device.type != "cpu" else data.evaluation_batch_size
        self.machine = Machine(self.device, Batches(batch_size or start))
        self.runner = Runner(store, progress or Progress())
        inliers, ood = data.inliers("test"), data.ood_sets()
        if not ood:
            raise UserError("data: neither near nor far names an OOD set to evaluate on")
        sets = [("id", inliers), *ood]
        self.sets = [TestSet(images, group, chunks(images, limit, chunk)) for group, images in sets]
        self.plans: list[Plan] = []
        self._notes: list[str] = []
        self._on_device: Subject | None = None

    def add(self, model: str, net: nn.Module, detectors: Mapping[str, Detector]) -> None:
        """Plan the evaluation of a network, and fit those of its detectors that must be.

        Raises: `UserError` for no detector, or one to fit without training images.
        """
        if not detectors:
            raise UserError("detectors: none given")
        chosen = Subject(model, net, dict(detectors))

        def before() -> None:
            self.bring(chosen)

        self._notes += [
            f"{model}, {name}: {note}"
            for name, notes in missing_sources(self.data, detectors).items()
            for note in notes
        ]
        fitted = fit_missing(model, net, detectors, self.data, self.runner, before)
        subject = Subject(model, net, fitted)
        self.plans.append(
            make_plan(subject, self.sets, self.attacks, self.machine, self._few(), before)
        )

    def compute(self) -> None:
        """Compute what is missing in the store, unless another process does."""
        self.runner.run([job for plan in self.plans for job in plan.jobs])

    def results(self, intervals: int = 1000, *, new: bool = True) -> Results:
        """Return the results of what is in the store.

        Args:
            intervals: resamples of the bootstrap intervals.
            new: compute those that are not in the store.
        """
        settings: dict[str, Any] = {
            "limit": self.limit,
            "device": str(self.device),
            "checks": self.checks,
        }
        settings["networks"] = {
            plan.subject.name: fingerprint(dict(plan.subject.net.state_dict()))
            for plan in self.plans
        }
        precisions: dict[str, list[str]] = {}
        results = Results(
            environment=describe_environment({**settings, "attack_precisions": precisions})
        )
        for plan in self.plans:
            table = Table(plan, self.sets, self.attacks, self.store)
            results.classification += table.accuracies()
            results.warnings += table.warnings()
            results.members += table.wins()
            results.cells += table.files()
            for precision, users in table.precisions().items():
                precisions[precision] = sorted(users.union(precisions.get(precision, ())))
            for row, inliers, outliers in table.rows():
                results.rows.append(row)
                if intervals and len(inliers):
                    found = interval(row, inliers, outliers, intervals, self.store, new=new)
                    results.intervals += [] if found is None else [found]
        results.failures = list(self.runner.failures)
        results.warnings += [*self._notes, *self.store.damage.values()]
        results.complete = not self.runner.left(job for plan in self.plans for job in plan.jobs)
        return results

    def _few(self) -> tuple[Chunk, Chunk] | None:
        """Return the images of the sanity checks, where they are wanted."""
        if not self.checks:
            return None
        few = min(FEW, self.limit or FEW)
        (inliers,), (outliers,) = (chunks(part.images, few) for part in self.sets[:2])
        return inliers, outliers

    def bring(self, subject: Subject) -> None:
        """Move a network and its detectors to the device, and those before back, so that there is
        room for one.
        """
        before = self._on_device
        if before is not None and before.net is subject.net:
            return
        for part in (before.net, *before.detectors.values()) if before is not None else ():
            part.to("cpu")
        subject.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for detector in subject.detectors.values():
            detector.to(self.device)
        self._on_device = subject
