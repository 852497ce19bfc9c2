"""Validation of what this project trains for: detection under attack, while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from robust_ood import attacks as attack_registry
from robust_ood import detectors as detector_registry
from robust_ood.attacks.objectives import Direction
from robust_ood.callbacks.dashboard import add_scores, add_strips
from robust_ood.data import ImageSet, OODData
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.checks import check_attacks
from robust_ood.evaluation.scores import attacked_scores, clean_scores, correct
from robust_ood.metrics import AUROC, FPR95
from robust_ood.training import Method

Specs = list[str | dict[str, Any]]
_FIT = 2000  # images of each kind that detectors are fitted on


class RobustValidation(Callback):
    """Scores validation images clean and attacked, and logs how well detectors separate them from
    OOD images.

    Logs `val/<ood>/<detector>/<attack>/auroc` and `.../fpr95` (ID positive), where <attack> is
    `none`, or an attack's label with `-in`, `-out` or `-both` for the side it was applied to;
    `val/<attack>/accuracy`, the accuracy on attacked validation images; and `val/robust_auroc`: the
    smallest AUROC over the attacks with both sides attacked (clean without attacks), averaged over
    detectors and OOD sets. Scores are pooled over all processes. Attacks go through the detector
    they are scored on, with random starts keyed by image, so that the numbers do not depend on the
    number of processes.

    Leaves no trace in gradients, modes or generators.

    Args:
        detectors: names, or mappings with a name and settings, as in an evaluation config; or
            detectors by label, built on the network that is trained. None given: no robust
            validation.
        attacks: likewise.
        every_n_epochs: validate robustly after every so many epochs, >= 1, and after the last of
            `max_epochs`.
        limit: images of each set, drawn once, >= 1.
    """

    logs = ("val/robust_auroc",)

    def __init__(
        self,
        detectors: Specs | dict[str, Any] | None = None,
        attacks: Specs | dict[str, Any] | None = None,
        every_n_epochs: int = 1,
        limit: int = 200,
    ) -> None:
        for field, value in (("every_n_epochs", every_n_epochs), ("limit", limit)):
            if value < 1:
                raise UserError(f"robust_validation.{field}: {value} is not >= 1")
        for field, given, method in (
            ("detectors", detectors, "surrogate"),
            ("attacks", attacks, "on_score"),
        ):
            for label, one in given.items() if isinstance(given, Mapping) else ():
                if not hasattr(one, method):
                    raise UserError(
                        f"robust_validation.{field}: {label!r} is {one!r}; a config gives a list of names, or of "
                        "mappings with a name and settings"
                    )
        self.detector_specs = detectors or []
        built = (
            attacks if isinstance(attacks, Mapping) else attack_registry.build_all(attacks or [])
        )
        self.attacks: dict[str, Any] = dict(built)
        check_attacks(self.attacks, "robust_validation.attacks")
        self.every_n_epochs, self.limit = every_n_epochs, limit
        self._detectors: dict[str, Detector] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Build the detectors on the network, and make sure that there is something to validate
        on.
        """
        if not self.detector_specs or self._detectors or not isinstance(module, Method):
            return
        given = self.detector_specs
        self._detectors = (
            dict(given)
            if isinstance(given, Mapping)
            else detector_registry.build_all(given, module.net)
        )
        if stage in ("fit", "validate"):
            _data(trainer).inliers("validation")
            if self._learns_from_outliers():
                _data(trainer).outliers()
            if not _data(trainer).validation_ood_sets():
                raise UserError(
                    "data.validation_ood: not given, and robust_validation needs OOD images"
                )

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Score, log."""
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = last or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if (
            not self._detectors
            or trainer.sanity_checking
            or not isinstance(module, Method)
            or not due
        ):
            return
        for name, value in self.validate(trainer, module).items():
            # The values are equal in all processes already; `sync_dist` only says that this is so.
            module.log(name, value, prog_bar=name in self.logs, sync_dist=True)

    def validate(self, trainer: Trainer, module: Method) -> dict[str, float]:
        """Return the numbers to log, by name."""
        data, device = _data(trainer), module.device
        inliers, outliers = data.inliers("validation"), data.validation_ood_sets()
        self._fit(data, device)
        id_scores = self._scores(data, inliers, 1, device)
        values: dict[str, float] = {}
        worst = []
        for ood in outliers:
            ood_scores = self._scores(data, ood, -1, device)
            for name in self._detectors:
                both = []
                for label, (id_key, ood_key) in self._comparisons().items():
                    pair = id_scores[name][id_key], ood_scores[name][ood_key]
                    prefix = f"val/{ood.name}/{name}/{label}"
                    values[f"{prefix}/auroc"], values[f"{prefix}/fpr95"] = _separation(
                        *pair, device
                    )
                    if label.endswith("-both") or not self.attacks:
                        both.append(values[f"{prefix}/auroc"])
                worst.append(min(both))
                add_scores(trainer, f"{ood.name}/{name}", id_scores[name], ood_scores[name])
        for label, attack in self.attacks.items():
            values[f"val/{label}/accuracy"] = self._accuracy(module, data, inliers, attack)
        for label, attack in list(self.attacks.items())[
            :1
        ]:  # pictures of one attack are enough, and cost as much again
            name, detector = next(iter(self._detectors.items()))
            add_strips(trainer, f"{name}/{label}", detector, attack, inliers, outliers[0], device)
        values["val/robust_auroc"] = sum(worst) / len(worst)
        return values

    def _fit(self, data: OODData, device: torch.device) -> None:
        """Fit the detectors on some images of each kind, of which each process reads its share."""
        outliers = data.outliers() if self._learns_from_outliers() else None
        detector_registry.fit(
            [detector.to(device) for detector in self._detectors.values()],
            data.evaluation_loader(data.inliers("train"), _FIT),
            validation=data.evaluation_loader(data.inliers("validation"), _FIT),
            outliers=None if outliers is None else data.evaluation_loader(outliers, _FIT),
        )

    def _learns_from_outliers(self) -> bool:
        return any("outliers" in detector.learns_from for detector in self._detectors.values())

    def _comparisons(self) -> dict[str, tuple[str, str]]:
        """Return, for each label, which scores of the inliers are compared with which of the
        outliers.
        """
        pairs = {"none": ("none", "none")}
        for label in self.attacks:
            pairs |= {
                f"{label}-in": (label, "none"),
                f"{label}-out": ("none", label),
                f"{label}-both": (label, label),
            }
        return pairs

    def _scores(
        self, data: OODData, images: ImageSet, side: Direction, device: torch.device
    ) -> dict[str, dict[str, Tensor]]:
        """Return this process's scores of a set by detector and attack label, "none" for clean
        images.

        side: +1 where attacks lower scores, -1 where they raise them.
        """
        loader = data.evaluation_loader(images, self.limit)
        if not len(loader):
            return {
                name: dict.fromkeys(["none", *self.attacks], torch.empty(0))
                for name in self._detectors
            }
        found = {
            name: {"none": column}
            for name, column in clean_scores(self._detectors, loader, device).items()
        }
        for name, detector in self._detectors.items():
            for label, attack in self.attacks.items():
                found[name][label] = attacked_scores(detector, loader, attack, side, device)
        return found

    def _accuracy(self, module: Method, data: OODData, images: ImageSet, attack: Any) -> float:
        loader, mean = data.evaluation_loader(images, self.limit), MeanMetric().to(module.device)
        if len(loader):
            mean.update(
                correct(module.net, loader, attack, module.device).float().to(module.device)
            )
        return float(mean.compute())


def _separation(id_scores: Tensor, ood_scores: Tensor, device: torch.device) -> tuple[float, float]:
    """Return AUROC and FPR95 of the scores of all processes."""
    auroc, fpr95 = AUROC().to(device), FPR95().to(device)
    for metric in (auroc, fpr95):
        metric.update(id_scores.to(device), True)
        metric.update(ood_scores.to(device), False)
    return float(auroc.compute()), float(fpr95.compute())


def _data(trainer: Trainer) -> OODData:
    data: OODData = trainer.datamodule  # type: ignore[attr-defined]  # a Lightning attribute without a type
    if not isinstance(data, OODData):
        raise UserError(
            "robust_validation: the trainer has no OODData to take validation images from"
        )
    return data
