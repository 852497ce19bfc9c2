"""What universal perturbations are found on: images that no row counts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robust_ood.attacks import Attack
from robust_ood.attacks.objectives import Direction
from robust_ood.attacks.universal import Universal, needs_fit, universal_of, with_perturbations
from robust_ood.data import ImageSet, OODData
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.scoring import Chunk, Scorer, as_input, chunks
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import Model, Task
from robust_ood.evaluation.versions import code_version
from robust_ood.randomness import generators

_NAMES = {1: "lower", -1: "raise"}
"""Of the perturbations in a cell, by direction."""


class FittingImages(NamedTuple):
    """Images of each side that are not tested."""

    inliers: ImageSet
    outliers: ImageSet


def all_fitting_images(data: OODData, attacks: Mapping[str, Attack]) -> dict[str, FittingImages]:
    """Return, by label, the images that the attacks which need some are fitted on."""
    images = {}
    for label, attack in attacks.items():
        if needs_fit(attack):
            images[label] = fitting_images(data, label)
    return images


def fitting_images(data: OODData, label: str) -> FittingImages:
    """Return the training images and auxiliary outliers, or for want of them validation images.

    label: of the attack, for the message.

    Raises: `UserError` where the data names none.
    """
    for part in ("train", "validation"):
        if data.names[part] is not None:
            inliers = data.inliers(part)
            break
    else:
        raise UserError(
            f"attacks.{label}: a universal perturbation is found on images that are not tested; "
            "give data.train or data.validation"
        )
    outliers = data.outliers()
    if outliers is None and data.validation_ood:
        outliers = data.validation_ood_sets()[0]
    if outliers is None:
        raise UserError(
            f"attacks.{label}: a universal perturbation is found on images that are not tested; "
            "give data.outliers or data.validation_ood"
        )
    return FittingImages(inliers, outliers)


class UniversalTask(Task):
    """The universal perturbations of a detector.

    Args:
        model, label: the detector.
        attack_label, attack: the attack.
        images: what it is fitted on.
        scorer: computes.
        store: has the perturbations afterwards.
    """

    stage = "universal"

    def __init__(
        self,
        model: Model,
        label: str,
        attack_label: str,
        attack: Attack,
        images: FittingImages,
        scorer: Scorer,
        store: Store,
    ) -> None:
        self.subject = model
        self.model = model.name
        self.attack = attack_label
        self.unfitted = attack
        self.scorer = scorer
        self.store = store
        universal = universal_of(attack)
        self.sides: dict[Direction, Chunk] = {}
        sides: dict[Direction, ImageSet] = {1: images.inliers, -1: images.outliers}
        for direction, side in sides.items():
            (self.sides[direction],) = chunks(side, universal.images, universal.images)
        contents = [chunk.content for chunk in self.sides.values()]
        inputs = [model.fingerprint(label), fingerprint(universal), *contents]
        self.name = fingerprint(["universal", code_version(), *inputs])
        self.keys = {label: self.name}
        self.title = f"{model.name}: {attack_label} for {label}"
        self.work = 3.0 * universal.steps * universal.batch_size * len(self.sides)

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Return the perturbations, and an alarm where noise would do as much."""
        self.scorer.bring(self.subject.net, self.subject.detectors)
        begin = time.perf_counter()
        (label,) = labels
        detector = self.subject.detectors[label]
        universal = universal_of(self.unfitted)
        arrays = {}
        warnings = []
        for direction, chunk in self.sides.items():
            images = as_input(chunk.read().images, self.scorer.device)
            found = universal.search(detector, images, direction)
            arrays[_NAMES[direction]] = found.float().cpu().numpy()
            if _is_noise(detector, universal, images, found, direction):
                side = "inliers" if direction == 1 else "outliers"
                warnings.append(
                    f"the universal perturbation {self.attack} moves the scores of the {side} that "
                    "it was found on no further than random noise does; give it more steps, or "
                    "check the gradients"
                )
        seconds = time.perf_counter() - begin
        return {label: Cell(arrays, {"warnings": warnings, "seconds": seconds})}

    def fitted(self, label: str) -> Attack:
        """Return the attack with the perturbations of a detector.

        Raises: `UserError` where they could not be found.
        """
        cell = self.store.read(self.keys[label])
        if cell is None:  # another process may still be at it
            with self.store.claim(self.name, self.title, wait=True):
                cell = self.store.read(self.keys[label])
        if cell is None:
            raise UserError(f"{self.attack}: no universal perturbation was found for {label}")
        found = {}
        for direction, name in _NAMES.items():
            found[direction] = torch.from_numpy(cell.arrays[name].copy())
        attack: Attack = with_perturbations(self.unfitted, found)
        return attack


def _is_noise(
    detector: Detector,
    universal: Universal,
    images: Tensor,
    perturbation: Tensor,
    direction: Direction,
) -> bool:
    """Return whether a random perturbation of each image does as much on the mean."""
    few = images[: universal.batch_size]
    draws = generators(universal.seed, "universal noise", indices=range(len(few)))
    noisy = universal.region.sample(few, draws)
    with torch.no_grad():
        moved = detector((few + perturbation).clamp(0, 1)).mean()
        by_noise = detector(noisy).mean()
    return bool(direction * moved >= direction * by_noise)
