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
from robust_ood.arguments import typed
from robust_ood.attacks.objectives import Direction
from robust_ood.callbacks.dashboard import add_scores, add_strips
from robust_ood.data import ImageSet, OODData
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.grid_checks import check_attacks, refuse_unfitted
from robust_ood.evaluation.scoring import Scorer
from robust_ood.metrics import AUROC, FPR95
from robust_ood.training import Method

Specs = list[str | dict[str, Any]]
_FIT = 2000  # images of each kind that detectors are fitted on


class RobustValidation(Callback):
    """Scores validation images clean and attacked, and logs how well detectors tell OOD from them.

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

    @typed
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
        _check_specs("detectors", detectors, "surrogate")
        _check_specs("attacks", attacks, "on_score")
        self.detector_specs = detectors or []
        if not isinstance(attacks, Mapping):
            attacks = attack_registry.build_all(attacks or [])
        self.attacks: dict[str, Any] = dict(attacks)
        check_attacks(self.attacks, "robust_validation.attacks")
        for label, attack in self.attacks.items():
            refuse_unfitted(f"robust_validation.attacks.{label}", attack)
        self.every_n_epochs = every_n_epochs
        self.limit = limit
        self._detectors: dict[str, Detector] = {}

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Build the detectors on the network, and check that there are images to validate on."""
        if not self.detector_specs or self._detectors or not isinstance(module, Method):
            return
        if isinstance(self.detector_specs, Mapping):
            self._detectors = dict(self.detector_specs)
        else:
            self._detectors = detector_registry.build_all(self.detector_specs, module.net)
        if stage not in ("fit", "validate"):
            return
        data = _data(trainer)
        data.inliers("validation")
        if self._learns_from_outliers():
            data.outliers()
        if not data.validation_ood_sets():
            raise UserError(
                "data.validation_ood: not given, and robust_validation needs OOD images; "
                "--robust_validation.detectors null switches it off"
            )

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Score, log."""
        if not self._detectors or trainer.sanity_checking or not isinstance(module, Method):
            return
        epochs = trainer.current_epoch + 1
        if epochs != trainer.max_epochs and epochs % self.every_n_epochs != 0:
            return
        for name, value in self.validate(trainer, module).items():
            # The values are equal in all processes already; `sync_dist` only says that this is so.
            module.log(name, value, prog_bar=name in self.logs, sync_dist=True)

    def validate(self, trainer: Trainer, module: Method) -> dict[str, float]:
        """Return the numbers to log, by name."""
        data = _data(trainer)
        scorer = Scorer(module.device)
        inliers = data.inliers("validation")
        outliers = data.validation_ood_sets()
        self._fit(data, module.device)
        id_scores = self._scores(scorer, data, inliers, 1)
        values: dict[str, float] = {}
        worst = []
        for ood in outliers:
            ood_scores = self._scores(scorer, data, ood, -1)
            for name in self._detectors:
                rates = self._separations(id_scores[name], ood_scores[name], module.device)
                for rate_name, rate in rates.items():
                    values[f"val/{ood.name}/{name}/{rate_name}"] = rate
                aurocs = [rates[f"{label}/auroc"] for label in self._worst_cases()]
                worst.append(min(aurocs))
                add_scores(trainer, f"{ood.name}/{name}", id_scores[name], ood_scores[name])
        for label, attack in self.attacks.items():
            values[f"val/{label}/accuracy"] = self._accuracy(scorer, module, data, inliers, attack)
        if self.attacks:
            self._add_strips(trainer, inliers, outliers[0], module.device)
        values["val/robust_auroc"] = sum(worst) / len(worst)
        return values

    def _add_strips(
        self, trainer: Trainer, inliers: ImageSet, outliers: ImageSet, device: torch.device
    ) -> None:
        """Show images under the first attack on the first detector: each costs an attack more."""
        name, detector = next(iter(self._detectors.items()))
        label, attack = next(iter(self.attacks.items()))
        add_strips(trainer, f"{name}/{label}", detector, attack, inliers, outliers, device)

    def _fit(self, data: OODData, device: torch.device) -> None:
        """Fit the detectors on some images of each kind, of which each process reads its share."""
        outliers = None
        if self._learns_from_outliers():
            auxiliary = data.outliers()
            if auxiliary is not None:
                outliers = data.evaluation_loader(auxiliary, _FIT)
        detectors = [detector.to(device) for detector in self._detectors.values()]
        detector_registry.fit(
            detectors,
            data.evaluation_loader(data.inliers("train"), _FIT),
            validation=data.evaluation_loader(data.inliers("validation"), _FIT),
            outliers=outliers,
        )

    def _learns_from_outliers(self) -> bool:
        return any("outliers" in detector.learns_from for detector in self._detectors.values())

    def _comparisons(self) -> dict[str, tuple[str, str]]:
        """Return, by label, which scores of inliers and of outliers are compared."""
        pairs = {"none": ("none", "none")}
        for label in self.attacks:
            pairs[f"{label}-in"] = (label, "none")
            pairs[f"{label}-out"] = ("none", label)
            pairs[f"{label}-both"] = (label, label)
        return pairs

    def _worst_cases(self) -> list[str]:
        """Return the labels of the comparisons with both sides attacked; without attacks, clean."""
        if not self.attacks:
            return ["none"]
        return [f"{label}-both" for label in self.attacks]

    def _separations(
        self,
        id_scores: Mapping[str, Tensor],
        ood_scores: Mapping[str, Tensor],
        device: torch.device,
    ) -> dict[str, float]:
        """Return AUROC and FPR95 of each comparison."""
        rates = {}
        for label, (id_label, ood_label) in self._comparisons().items():
            auroc, fpr95 = separation(id_scores[id_label], ood_scores[ood_label], device)
            rates[f"{label}/auroc"] = auroc
            rates[f"{label}/fpr95"] = fpr95
        return rates

    def _scores(
        self, scorer: Scorer, data: OODData, images: ImageSet, side: Direction
    ) -> dict[str, dict[str, Tensor]]:
        """Return this process's scores of a set by detector and attack, "none" for clean images.

        side: +1 where attacks lower scores, -1 where they raise them.
        """
        loader = data.evaluation_loader(images, self.limit)
        clean = scorer.score(self._detectors, loader).scores
        scores: dict[str, dict[str, Tensor]] = {}
        for name, detector in self._detectors.items():
            scores[name] = {"none": clean[name]}
            for label, attack in self.attacks.items():
                scored = scorer.score({name: detector}, loader, attack, side)
                scores[name][label] = scored.scores[name]
        return scores

    def _accuracy(
        self, scorer: Scorer, module: Method, data: OODData, images: ImageSet, attack: Any
    ) -> float:
        mean = MeanMetric().to(module.device)
        loader = data.evaluation_loader(images, self.limit)
        right = scorer.correct(module.net, loader, attack).scores[""]
        # In a distributed run, a process may have no image; `compute` waits for all of them.
        if len(right):
            mean.update(right.to(module.device))
        return float(mean.compute())


def _check_specs(field: str, specs: Specs | dict[str, Any] | None, method: str) -> None:
    """Raise `UserError` for a mapping, by label, to what is no detector or attack."""
    if not isinstance(specs, Mapping):
        return
    for label, value in specs.items():
        if not hasattr(value, method):
            raise UserError(
                f"robust_validation.{field}: {label!r} is {value!r}; a config gives a list of "
                "names, or of mappings with a name and settings"
            )


def separation(id_scores: Tensor, ood_scores: Tensor, device: torch.device) -> tuple[float, float]:
    """Return AUROC and FPR95 of the scores `(N,)` and `(M,)` of all processes."""
    auroc = AUROC().to(device)
    fpr95 = FPR95().to(device)
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
