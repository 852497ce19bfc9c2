"""Rows of transfer: images attacked through one detector, scored by the others.

The images are those of the source's own rows, which the store keeps, so nothing is attacked twice.
An attacker does this who knows another network, and not the one that is deployed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import torch

from robust_ood.attacks import Attack
from robust_ood.data.sets import ReadImages
from robust_ood.detectors import Detector
from robust_ood.errors import UserError, unknown_name
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.scoring import Scorer
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import ImagesTask, Model, ScoreTask
from robust_ood.evaluation.versions import code_version
from robust_ood.texts import shown

ALL = "all"
"""Every detector of every network is a source."""


class TransferTask(ImagesTask):
    """The scores that detectors give to a chunk that was attacked through another one.

    Args:
        model: whose detectors score.
        fingerprints: of these detectors, by label.
        source: attacked the images and keeps them.
        detector: the label of the source's detector.
        scorer: computes.
        store: has the images, or gets them here.
    """

    stage = "transfer"

    def __init__(
        self,
        model: Model,
        fingerprints: Mapping[str, str],
        source: ScoreTask,
        detector: str,
        scorer: Scorer,
        store: Store,
    ) -> None:
        assert source.perturbation is not None
        self.subject = model
        self.model = model.name
        self.attack = transfer_label(source.attack, source.model, detector)
        self.perturbation = source.perturbation
        self.carried = source.perturbation
        self.source = source
        self.source_detector = detector
        self.set_index = source.set_index
        self.chunk = source.chunk
        self.scorer = scorer
        self.store = store
        images = source.images_key(detector)
        self.keys = {}
        for label, subject in fingerprints.items():
            self.keys[label] = fingerprint(["transfer", code_version(), subject, images])
        self.name = fingerprint(["transfer", model.net_fingerprint, *self.keys.values()])
        self.title = (
            f"{model.name}: {self.attack} on {self.chunk.images.name} "
            f"{self.chunk.start}-{self.chunk.stop}"
        )
        self.work = float(len(self.chunk)) / len(self.keys)

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Return the scores of the attacked images.

        Raises: `UserError` where the source could not be attacked, or for scores that are not
            finite.
        """
        attacked = self._attacked()
        begin = time.perf_counter()
        self.scorer.bring(self.subject.net, self.subject.detectors)
        detectors = {label: self.subject.detectors[label] for label in labels}
        scored = self.scorer.score(detectors, [attacked])
        for scores in scored.scores.values():
            broken = int((~scores.isfinite()).sum())
            if broken:
                raise UserError(f"{broken} of {len(scores)} scores are not finite")
        seconds = (time.perf_counter() - begin) / len(detectors)
        return self.cells(scored, attacked.indices, seconds)

    def _attacked(self) -> ReadImages:
        """Return the attacked images; another process may still be at them."""
        key = self.source.images_key(self.source_detector)
        cell = self.store.read(key)
        if cell is None:
            with self.store.claim(self.source.name, self.source.title, wait=True):
                cell = self.store.read(key)
        if cell is None:
            raise UserError(
                f"{self.source.model}/{self.source_detector} gave no images attacked by "
                f"{self.source.attack}"
            )
        return ReadImages(
            torch.from_numpy(cell.arrays["images"]),
            torch.from_numpy(cell.arrays["labels"]),
            torch.from_numpy(cell.arrays["indices"]),
        )


def transfer_label(attack: str, model: str, detector: str) -> str:
    """Return what rows call an attack whose images are those of another detector."""
    return f"{attack} from {model}/{detector}"


def read_sources(sources: str | Sequence[str]) -> list[str]:
    """Return the sources as a list.

    Raises: `UserError` for what is neither "all" nor names.
    """
    if isinstance(sources, str):
        sources = [sources]
    for source in sources:
        if not isinstance(source, str) or not source.strip():
            raise UserError(
                f"transfer: expected all, or a list of networks or network/detector, got "
                f"{shown(source)}"
            )
    return list(dict.fromkeys(sources))


def check_sources(
    sources: Sequence[str],
    detectors: Mapping[str, Mapping[str, Detector]],
    attacks: Mapping[str, Attack],
) -> None:
    """Refuse sources that the evaluation does not have, and those without a target.

    Args:
        sources: "all", or networks or `network/detector`.
        detectors: by network and label.
        attacks: by label.

    Raises:
        UserError: naming `transfer`.
    """
    if not sources:
        return
    known: list[str] = []
    for model, labels in detectors.items():
        known += [model, *(f"{model}/{label}" for label in labels)]
    for source in sources:
        if source != ALL and source not in known:
            raise unknown_name("transfer", source, [ALL, *known])
    if not attacks:
        raise UserError("transfer: no attacks are given, so there are no images to carry over")
    if sum(map(len, detectors.values())) < 2:
        raise UserError(
            "transfer: the evaluation has one detector of one network, and so no other to score "
            "its images; give more of detectors or models"
        )


def is_source(sources: Sequence[str], model: str, detector: str) -> bool:
    """Return whether the images of a detector are carried over."""
    return any(name in sources for name in (ALL, model, f"{model}/{detector}"))


def transfers(
    models: Sequence[Model],
    sources: Sequence[str],
    attacks: Mapping[str, Attack],
    scorer: Scorer,
    store: Store,
) -> Iterator[tuple[Model, TransferTask]]:
    """Yield, with its network, each task of scoring what was attacked elsewhere.

    Args:
        models: networks with the tasks of their own rows.
        sources: as in `check_sources`.
        attacks: those whose images are carried over, by label.
        scorer, store: of the tasks.
    """
    fingerprints = {}
    for model in models:
        labels = model.detectors
        fingerprints[model.name] = {label: model.fingerprint(label) for label in labels}
    for origin in models:
        for task in list(origin.tasks):
            if not isinstance(task, ScoreTask) or task.attack not in attacks:
                continue
            for detector in task.keys:
                if not is_source(sources, origin.name, detector):
                    continue
                for target in models:
                    others = dict(fingerprints[target.name])
                    if target is origin:
                        del others[detector]
                    if others:
                        yield (
                            target,
                            TransferTask(target, others, task, detector, scorer, store),
                        )
