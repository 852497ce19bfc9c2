"""The grid: networks' detectors against every attack on every set, each cell computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robust_ood.arguments import typed
from robust_ood.attacks import Attack
from robust_ood.data import OODData
from robust_ood.deprecation import warn_renamed
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.attacked_images import Form, check_form, write_attacked
from robust_ood.evaluation.certificates import Certificate, Cost, build_certificates
from robust_ood.evaluation.certified import cost_of
from robust_ood.evaluation.certifying import CertifiedModel, plan, with_attacks
from robust_ood.evaluation.chance import check_accuracy
from robust_ood.evaluation.fitting import FitTask
from robust_ood.evaluation.grid_checks import check_attacks, check_count, describe_draws
from robust_ood.evaluation.planning import Planner
from robust_ood.evaluation.results import Results, Row, describe_environment
from robust_ood.evaluation.rows import ModelRecords, interval_of
from robust_ood.evaluation.runner import Runner
from robust_ood.evaluation.sanity import check_bracket
from robust_ood.evaluation.scoring import CHUNK, Scorer, test_sets
from robust_ood.evaluation.store import FolderStore, Store
from robust_ood.evaluation.tasks import Model, Task
from robust_ood.evaluation.terminal import Progress
from robust_ood.evaluation.transfer_rows import check_sources, read_sources, transfers
from robust_ood.evaluation.universal_fits import all_fitting_images
from robust_ood.models.wrap import as_network
from robust_ood.settings import PartSpec


def evaluate(  # noqa: PLR0913
    net: nn.Module,
    *,
    detectors: Mapping[str, Detector],
    attacks: Mapping[str, Attack],
    data: OODData,
    model: str = "model",
    limit: int | None = None,
    device: torch.device | str = "cpu",
    sanity: bool = True,
    intervals: bool | int = True,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    checks: bool | None = None,
    certificates: Sequence[PartSpec] = (),
    skip_settled: bool = True,
    save_attacked: Form | None = None,
    transfer: str | Sequence[str] = (),
) -> Results:
    """Score every detector on clean and attacked images and return the results.

    Args:
        net: the classifier, for its accuracy.
        detectors: detectors by label; those not fitted yet are fitted on the training images of
            `data`.
        attacks: attacks by label; each goes through the detector that it is scored on.
        data: the test part is the in-distribution; `near` and `far` are the OOD sets;
            with `shifted`, rows of the full spectrum count those images as inliers, too.
        model: the name that rows carry.
        limit: use only so many images of each set: the first ones or, of a set that is sorted by
            class, drawn ones, which a note in the results says.
        device: where to compute.
        sanity: also look, on a few images, for signs that an attack failed for a reason other than
            a robust detector.
        intervals: whether the rates get 95 % intervals; a number, as earlier versions took, is
            true unless it is 0.
        folder: where cells are kept as soon as they are computed, so that a second call computes
            only what is missing; None keeps them in memory until the call ends. `Results.write`
            writes the results themselves.
        progress: told what is computed.
        checks: the old name of `sanity`, for one release.
        skip_settled: let attacks of several members leave alone images that can no longer change a
            reported number; see `evaluation.settled`.
        save_attacked: also write the attacked images into `folder`, with their scores before and
            after: "npz", or "png" where all attacks are quantised.
        transfer: detectors, as `model/detector`, whose attacked images the others score, too, or
            "all".
        certificates: as configs write them: `{"name": "smoothing", "sigma": 0.25, "radius": [0.1]}`
            or `{"name": "interval", "radius": "1/255"}`.

    Returns:
        The results. A detector that cannot be fitted, attacked or scored is in their `failures`;
        the rest goes on.

    Raises:
        UserError: no OOD set, no detector, images of different sizes, a detector to fit without
            training images.
    """
    if checks is not None:
        warn_renamed("evaluate(checks=...)", "evaluate(sanity=...)")
        sanity = checks
    store = Store() if folder is None else FolderStore(Path(folder))
    grid = Grid(
        data,
        attacks,
        store,
        limit=limit,
        device=device,
        sanity=sanity,
        progress=progress,
        certificates=build_certificates(certificates),
        skip_settled=skip_settled,
        save_attacked=save_attacked,
        transfer=transfer,
    )
    if save_attacked is not None and folder is None:
        raise UserError("save_attacked: needs the folder that the images are written into")
    grid.add(model, net, detectors)
    grid.compute()
    if folder is not None:
        grid.write_attacked(Path(folder))
    return grid.results(intervals)


class Grid:
    """Networks, detectors, attacks and sets whose scores lie in one store.

    Args:
        data, attacks, limit, device, sanity, progress, checks, skip_settled, save_attacked,
            transfer: as in `evaluate`.
        store: where cells are kept.
        batch_size: images of a batch, halved where they do not fit into memory. None begins on a
            GPU with a whole chunk and on the CPU with `data.evaluation_batch_size`.
        chunk: images of a cell.
        certificates: bounds to compute, and an attack beside each of them.

    Raises:
        UserError: no OOD set, a number of images below 1.
    """

    @typed
    def __init__(  # noqa: PLR0913
        self,
        data: OODData,
        attacks: Mapping[str, Attack],
        store: Store,
        *,
        limit: int | None = None,
        device: torch.device | str = "cpu",
        sanity: bool = True,
        progress: Progress | None = None,
        batch_size: int | None = None,
        chunk: int = CHUNK,
        checks: bool | None = None,
        certificates: Sequence[Certificate] = (),
        skip_settled: bool = True,
        save_attacked: Form | None = None,
        transfer: str | Sequence[str] = (),
    ) -> None:
        if checks is not None:
            warn_renamed("Grid(checks=...)", "Grid(sanity=...)")
            sanity = checks
        check_count("limit", limit)
        check_count("batch_size", batch_size)
        check_count("chunk", chunk)
        check_attacks(attacks)
        check_form(save_attacked, attacks)
        self.data = data
        self.save_attacked = save_attacked
        self.own_attacks = dict(attacks)
        self.sources = read_sources(transfer)
        self.certificates = list(certificates)
        self.attacks = with_attacks(attacks, self.certificates)
        self.store = store
        self.limit = limit
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise UserError(f"device: {device!r} is no kind of device") from error
        self.sanity = sanity
        if batch_size is None and self.device.type == "cpu":
            batch_size = data.evaluation_batch_size
        elif batch_size is None:
            batch_size = chunk
        self.scorer = Scorer(self.device, batch_size)
        self.runner = Runner(store, progress or Progress())
        self.sets = test_sets(data, limit, chunk)
        self._planner = Planner(
            self.sets,
            self.attacks,
            store,
            self.scorer,
            limit,
            sanity,
            skip_settled,
            kept=frozenset(attacks),
            saves=save_attacked is not None,
            sources=self.sources,
            fitting=all_fitting_images(data, attacks),
        )
        self.models: list[Model] = []
        self._given: dict[str, Mapping[str, Detector]] = {}
        self._carried: dict[str, dict[str, Attack]] = {}  # by network, attacks of other detectors
        self.certified: list[CertifiedModel] = []
        self._notes = list(describe_draws(data, limit))
        if data.names["validation"] is None:
            self._notes.append(
                "data.validation is not given, so thresholds accept 95 % of the very images that "
                "are tested; rates at them are those of no deployed detector"
            )

    def add(self, model: str, net: nn.Module, detectors: Mapping[str, Detector]) -> None:
        """Plan the evaluation of a network, and fit those of its detectors that must be.

        Without detectors, only the classifier is evaluated.

        Raises: `UserError` for a detector to fit without training images.
        """
        added = Model(model, as_network(net), dict(detectors))
        self._given[model] = detectors
        if not all(detector.fitted for detector in detectors.values()):
            self._notes += self._missing_sources(added)
            fit = FitTask(added, self.data, self.scorer)
            self.runner.run([fit])
            fit.load(self.store)
        added.tasks += self._planner.tasks(added)
        self.models.append(added)
        if added.detectors:
            planned, notes = plan(added, self.certificates, self.sets, self.scorer)
            self.certified += planned
            self._notes += notes

    def compute(self) -> None:
        """Compute what is missing in the store, unless another process does.

        Raises: `UserError` for sources of transfer that are none of the grid's.
        """
        self._plan_transfers()
        self.runner.run(self._all_tasks())

    def write_attacked(self, folder: Path) -> list[Path]:
        """Write the attacked images that are asked for, and return the files.

        folder: of the results.
        """
        if self.save_attacked is None:
            return []
        form = self.save_attacked
        return write_attacked(folder, form, self.models, self.sets, self.own_attacks, self.store)

    def cost(self) -> Cost | None:
        """Return what the certificates that are missing will cost; None without any."""
        return cost_of(self._all_tasks(), self.store, self.scorer)

    def results(self, intervals: bool | int = True) -> Results:
        """Return the results of what is in the store.

        Args:
            intervals: whether the rates get 95 % intervals.
        """
        results = Results()
        precisions: dict[str, set[str]] = {}
        for model in self.models:
            attacks = {**self.attacks, **self._carried.get(model.name, {})}
            records = ModelRecords(model, self.sets, attacks, self.store)
            accuracies = list(records.accuracies())
            results.classification += accuracies
            results.shifted_classification += records.shifted_accuracies()
            for accuracy in accuracies:
                results.warnings += check_accuracy(accuracy, self.data.num_classes)
            results.warnings += records.warnings()
            results.members += records.wins()
            results.cells += records.files()
            for precision, users in records.precisions().items():
                precisions.setdefault(precision, set()).update(users)
            self._add_rows(results, records, intervals=bool(intervals))
        for certified in self.certified:
            records = ModelRecords(certified.model, self.sets, certified.attacks, self.store)
            results.cells += records.files()
            self._add_rows(results, records, intervals=bool(intervals))
        results.environment = self._environment(precisions)
        results.failures = list(self.runner.failures)
        results.warnings += [*self._notes, *self.store.damage.values()]
        results.complete = not self.runner.unfinished(self._all_tasks())
        return results

    def _add_rows(self, results: Results, records: ModelRecords, *, intervals: bool) -> None:
        clean: dict[tuple[str, str, str], Row] = {}
        for scored in records.rows():
            row = scored.row
            if row.attacked == "none":
                clean[row.detector, row.ood, row.group] = row
            results.rows.append(row)
            results.warnings += check_bracket(row, clean.get((row.detector, row.ood, row.group)))
            if intervals:
                results.intervals.append(interval_of(scored))

    def bring(self, model: Model) -> None:
        """Move a model of the grid to the device, and the one before back."""
        self.scorer.bring(model.net, model.detectors)

    def _plan_transfers(self) -> None:
        """Add the tasks of transfer, which need all networks' attacked images, once."""
        if self._carried or not self.sources:
            return
        # As they were given: one that could not be fitted is a failure of its own.
        check_sources(self.sources, self._given, self.own_attacks)
        planned = transfers(self.models, self.sources, self.own_attacks, self.scorer, self.store)
        for model, task in list(planned):
            model.tasks.append(task)
            self._carried.setdefault(model.name, {})[task.attack] = task.carried

    def _all_tasks(self) -> list[Task]:
        tasks: list[Task] = []
        for model in self.models:
            tasks += model.tasks
        # Last, because another network's images are computed first.
        tasks.sort(key=lambda task: task.stage == "transfer")
        for certified in self.certified:
            tasks += certified.model.tasks
        return tasks

    def _missing_sources(self, model: Model) -> list[str]:
        """Say what detectors do for want of images that the data does not name."""
        notes = []
        given = {**self.data.names, "outliers": self.data.auxiliary}
        for label, detector in model.detectors.items():
            if detector.fitted:
                continue
            for split, instead in detector.learns_from.items():
                if given[split] is None:
                    missing = f"data.{split} is not given"
                    notes.append(f"{model.name}, {label}: {missing}, so {instead}")
        return notes

    def _environment(self, precisions: Mapping[str, set[str]]) -> dict[str, Any]:
        networks = {}
        for model in self.models:
            networks[model.name] = model.weights_fingerprint()
        detectors_by_precision = {}
        for precision, users in precisions.items():
            detectors_by_precision[precision] = sorted(users)
        settings: dict[str, Any] = {
            "limit": self.limit,
            "device": str(self.device),
            "sanity": self.sanity,
            "checks": self.sanity,  # its old name, for one release
            "networks": networks,
            "attack_precisions": detectors_by_precision,
        }
        return describe_environment(settings)
