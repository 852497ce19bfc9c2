"""The grid: every detector against every attack on every OOD set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robust_ood.attacks import Attack, Settings
from robust_ood.attacks.objectives import Direction
from robust_ood.data import EvaluationLoader, ImageSet, OODData
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation import sanity
from robust_ood.evaluation.results import METRICS, Accuracy, Results, Row, describe_environment
from robust_ood.evaluation.scores import attacked_scores, clean_scores, correct, on_device
from robust_ood.metrics import ood_metrics

Progress = Callable[[str], None]
_FEW = 16  # images of each side that the sanity checks use
_NO_ATTACK = Settings(norm="none", radius=0.0, steps=0, restarts=0)


class Cell(NamedTuple):
    """Scores of one set by one detector under one attack (or none), and the seconds they took."""

    scores: Tensor
    seconds: float


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
    progress: Progress = lambda step: None,
) -> Results:
    """Score every detector on clean and attacked images and return the results.

    Args:
        net: the classifier, for its accuracy.
        detectors: detectors by label; each already fitted if it needs to be.
        attacks: attacks by label; each goes through the detector that it is scored on.
        data: the test part is the in-distribution; `near` and `far` are the OOD sets.
        model: the name that rows carry.
        limit: use only the first so many images of each set.
        device: where to compute.
        checks: also look, on a few images, for signs that an attack failed for a reason other than a robust detector.
        progress: told what is computed next.

    Raises:
        UserError: no OOD set, no detector, or images of different sizes.
    """
    grid = _Grid(data, model, limit, torch.device(device), progress)
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for detector in detectors.values():
        detector.to(device)
    results = Results(environment=describe_environment({"limit": limit, "device": str(device), "checks": checks}))
    results.classification = grid.classification(net, attacks)
    results.rows = grid.rows(detectors, attacks)
    results.warnings = grid.warnings(detectors, attacks) if checks else []
    return results


class _Grid:
    def __init__(self, data: OODData, model: str, limit: int | None, device: torch.device, progress: Progress) -> None:
        self.inliers = data.inliers("test")
        self.ood = data.ood_sets()
        self.batch_size = data.evaluation_batch_size
        self.model, self.limit, self.device, self.progress = model, limit, device, progress
        if not self.ood:
            raise UserError("data: neither near nor far names an OOD set to evaluate on")

    def rows(self, detectors: Mapping[str, Detector], attacks: Mapping[str, Attack]) -> list[Row]:
        if not detectors:
            raise UserError("detectors: none given")
        clean = {images.name: self._clean(detectors, images) for images in self._sets()}
        rows = []
        for name, detector in detectors.items():
            own = {images: cells[name] for images, cells in clean.items()}
            rows += self._with_means(self._compare(name, "none", _NO_ATTACK, "none", own, own, own))
            for label, attack in attacks.items():
                hit = {images.name: self._attacked(name, detector, images, label, attack) for images in self._sets()}
                settings = attack.settings()
                for attacked, id_cells, ood_cells in (("in", hit, own), ("out", own, hit), ("both", hit, hit)):
                    rows += self._with_means(self._compare(name, label, settings, attacked, own, id_cells, ood_cells))
        return rows

    def classification(self, net: nn.Module, attacks: Mapping[str, Attack]) -> list[Accuracy]:
        table = []
        every: dict[str, Attack | None] = {"none": None, **attacks}
        for label, attack in every.items():
            self.progress(f"{self.model}: accuracy, attack {label}")
            begin = time.perf_counter()
            right = correct(net, self._loader(self.inliers), attack, self.device)
            settings = _NO_ATTACK if attack is None else attack.settings()
            table.append(
                Accuracy(
                    model=self.model,
                    id=self.inliers.name,
                    attack=label,
                    n=len(right),
                    accuracy=right.double().mean().item(),
                    seconds=time.perf_counter() - begin,
                    **settings,
                )
            )
        return table

    def warnings(self, detectors: Mapping[str, Detector], attacks: Mapping[str, Attack]) -> list[str]:
        """Return the alarms of every detector under every attack, each once, from a few images."""
        inliers, outliers = self._few(self.inliers), self._few(self.ood[0][1])
        found: dict[str, None] = {}
        for name, detector in detectors.items():
            self.progress(f"{self.model}: sanity of {name}")
            alarms = sanity.check(detector, inliers, outliers, *attacks.values(), name=f"{self.model}, {name}")
            found.update(dict.fromkeys(alarms))
        return list(found)

    def _few(self, images: ImageSet) -> Tensor:
        (batch, *_) = EvaluationLoader(images, batch_size=_FEW, limit=min(_FEW, self.limit or _FEW))
        return on_device(batch, self.device)

    def _sets(self) -> list[ImageSet]:
        return [self.inliers, *(images for _, images in self.ood)]

    def _loader(self, images: ImageSet) -> EvaluationLoader:
        return EvaluationLoader(images, batch_size=self.batch_size, limit=self.limit)

    def _clean(self, detectors: Mapping[str, Detector], images: ImageSet) -> dict[str, Cell]:
        self.progress(f"{self.model}: clean scores on {images.name}")
        begin = time.perf_counter()
        scores = clean_scores(detectors, self._loader(images), self.device)
        seconds = (time.perf_counter() - begin) / len(detectors)
        return {name: Cell(column, seconds) for name, column in scores.items()}

    def _attacked(self, name: str, detector: Detector, images: ImageSet, label: str, attack: Attack) -> Cell:
        self.progress(f"{self.model}: {name} under {label} on {images.name}")
        begin = time.perf_counter()
        direction: Direction = 1 if images is self.inliers else -1
        scores = attacked_scores(detector, self._loader(images), attack, direction, self.device)
        return Cell(scores, time.perf_counter() - begin)

    def _compare(
        self,
        detector: str,
        attack: str,
        settings: Settings,
        attacked: str,
        clean: Mapping[str, Cell],
        id_cells: Mapping[str, Cell],
        ood_cells: Mapping[str, Cell],
    ) -> list[Row]:
        """Return one row for each OOD set."""
        rows = []
        inliers = id_cells[self.inliers.name]
        for group, images in self.ood:
            outliers = ood_cells[images.name]
            numbers: dict[str, Any] = ood_metrics(inliers.scores, outliers.scores, clean[self.inliers.name].scores)
            rows.append(
                Row(
                    model=self.model,
                    detector=detector,
                    attack=attack,
                    attacked=attacked,
                    id=self.inliers.name,
                    ood=images.name,
                    group=group,
                    n_id=len(inliers.scores),
                    n_ood=len(outliers.scores),
                    seconds=inliers.seconds + outliers.seconds,
                    **settings,
                    **numbers,
                )
            )
        return rows

    @staticmethod
    def _with_means(rows: list[Row]) -> list[Row]:
        """Add the mean over the near sets and over the far sets."""
        means = []
        for group in ("near", "far"):
            members = [row for row in rows if row.group == group]
            if members:
                numbers = {name: sum(getattr(row, name) for row in members) / len(members) for name in METRICS}
                n_ood, seconds = sum(row.n_ood for row in members), sum(row.seconds for row in members)
                means.append(replace(members[0], ood=group, n_ood=n_ood, seconds=seconds, **numbers))
        return rows + means
