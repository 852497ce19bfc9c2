"""Tasks: what an evaluation computes, each under a key, once, by whichever process comes first."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn

from robust_ood.attacks import Attack
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation import sanity
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.scoring import Chunk, Scored, Scorer, TestSet, as_input
from robust_ood.evaluation.settled import Bars
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.versions import code_version

ATTACKED_ARRAYS = ("images", "labels")
"""What a cell of attacked images holds beside `indices`: `(n, C, H, W)` in [0, 1], and `(n,)`."""
_SANITY_WORK = 32 * 200.0  # in clean scores, for each attack


@dataclass
class Model:
    """A network and its detectors under the name that rows carry, and what is computed for it."""

    name: str
    net: nn.Module
    detectors: dict[str, Detector]
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.net_fingerprint = fingerprint(self.net)

    def fingerprint(self, label: str) -> str:
        """Return the fingerprint of a detector, as it is now."""
        return fingerprint(self.detectors[label], {id(self.net): self.net_fingerprint})

    def weights_fingerprint(self) -> str:
        """Return the fingerprint of the network's weights, by which results are told apart."""
        return fingerprint(dict(self.net.state_dict()))


class Task(ABC):
    """Cells that are computed together.

    stage: "fit", "score", "classify" or "check". model: the name of whose cells these
    are. attack: the attack's label, "none" without one. keys: the cells' keys, by the label of
    their detector ("" for the network itself). name: what processes that share a store call it,
    without spaces. title: what a user is told. work: how long one cell takes, in clean scores of
    one image.
    """

    stage: ClassVar[str]
    model: str
    attack: str = "none"
    keys: Mapping[str, str]
    name: str
    title: str
    work: float = 0.0

    @abstractmethod
    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Return the cells of some detectors, by label; given are all those that are missing."""

    def stored(self, label: str, cell: Cell) -> Mapping[str, Cell]:
        """Return what is kept of a detector's cell, by key, the cell itself last."""
        return {self.keys[label]: cell}

    def missing(self, store: Store, failed: Container[str] = ()) -> list[str]:
        """Return the labels whose cells are to be computed."""
        labels = []
        for label, key in self.keys.items():
            if label not in failed and not store.has(key):
                labels.append(label)
        return labels


class ImagesTask(Task):
    """Scores of one chunk of a set, clean or under an attack."""

    set_index: int
    chunk: Chunk
    perturbation: Attack | None

    def cells(self, scored: Scored, indices: Tensor, seconds: float) -> dict[str, Cell]:
        """Return what was scored, with provenance."""
        arrays: dict[str, Any] = {"indices": indices.numpy()}
        settings: dict[str, Any] = {}
        if self.perturbation is not None:
            settings.update(self.perturbation.settings())
        provenance: dict[str, Any] = {
            "images": self.chunk.images.name,
            "start": self.chunk.start,
            "stop": self.chunk.stop,
            "code": code_version(),
            "settings": settings,
            "precisions": list(scored.precisions),
            "seconds": seconds,
        }
        if scored.winners is not None:
            arrays["winners"] = scored.winners.numpy().astype(np.int16)
            provenance["members"] = list(scored.members)
            provenance["attempts"] = dict(zip(scored.members, scored.attempts, strict=True))
        cells = {}
        for label, scores in scored.scores.items():
            cells[label] = Cell({"scores": scores.float().numpy(), **arrays}, provenance)
        return cells


class Preparation(Protocol):
    """What an attack needs before it can be used on a detector.

    keys: of its cells, by the detector's label.
    """

    keys: Mapping[str, str]

    def fitted(self, label: str) -> Attack:
        """Return the attack, ready for a detector."""


class ScoreTask(ImagesTask):
    """The scores of detectors on one chunk, clean or under an attack.

    Args:
        model: whose detectors they are.
        fingerprints: of the detectors, by label; all of them share the attacked images.
        test_set, set_index: the set, and its position among the sets.
        chunk: the images.
        label, attack: the attack; "none" and None for clean images.
        scorer: computes.
        bars: which images need no more of the attack; None attacks all to the end.
        keeps_images: also store the attacked images, under keys of their own.
        preparation: what makes the attack ready for the one detector; None where it is.
    """

    stage = "score"

    def __init__(  # noqa: PLR0913
        self,
        model: Model,
        fingerprints: Mapping[str, str],
        test_set: TestSet,
        set_index: int,
        chunk: Chunk,
        label: str,
        attack: Attack | None,
        scorer: Scorer,
        bars: Bars | None = None,
        *,
        keeps_images: bool = False,
        preparation: Preparation | None = None,
    ) -> None:
        self.subject = model
        self.model = model.name
        self.attack = label
        self.perturbation = attack
        self.bars = bars
        self.keeps_images = keeps_images
        self.preparation = preparation
        self.direction = test_set.direction
        self.set_index = set_index
        self.chunk = chunk
        self.scorer = scorer
        direction = self.direction if attack else 0  # clean scores have none
        images = [fingerprint(attack), direction, chunk.content]
        if preparation is not None:
            images += preparation.keys.values()
        self.keys = {}
        for name, detector in fingerprints.items():
            self.keys[name] = fingerprint(["score", code_version(), detector, *images])
        self.name = fingerprint(["scores", model.net_fingerprint, *images])
        # The cell's own key: other detectors on these images need not wait for it.
        if len(self.keys) == 1:
            (self.name,) = self.keys.values()
        self.title = _title(model.name, "clean scores", label, chunk)
        self.work = float(len(chunk)) / len(self.keys)
        if attack is not None:
            self.title = _title(model.name, ", ".join(self.keys), label, chunk)
            self.work *= attack_work(attack) + len(self.keys)

    def missing(self, store: Store, failed: Container[str] = ()) -> list[str]:
        """Return the labels whose cells are to be computed, also those cut short too early."""
        labels = super().missing(store, failed)
        if self.keeps_images:
            for label in self.keys:
                known = label in failed or label in labels
                if not known and not store.has(self.images_key(label)):
                    labels.append(label)
        if self.bars is None:
            return labels
        for label, key in self.keys.items():
            cell = None
            if label not in failed and label not in labels:
                cell = store.read(key)
            if cell is not None and not self.bars.holds(cell, self.direction):
                labels.append(label)
        return labels

    def images_key(self, label: str) -> str:
        """Return the key of the images that were attacked through a detector."""
        return fingerprint(["attacked images", self.keys[label]])

    def stored(self, label: str, cell: Cell) -> Mapping[str, Cell]:
        """Return the attacked images, if they are kept, and the scores."""
        arrays = dict(cell.arrays)
        images: dict[str, Any] = {}
        for name in ATTACKED_ARRAYS:
            if name in arrays:
                images[name] = arrays.pop(name)
        if not images:
            return {self.keys[label]: cell}
        images["indices"] = arrays["indices"]
        about = {**cell.about, "stage": "images"}
        return {
            self.images_key(label): Cell(images, about),
            self.keys[label]: Cell(arrays, cell.about),
        }

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Return the scores, and the attacked images with them.

        Raises: `UserError` for scores that are not finite.
        """
        self.scorer.bring(self.subject.net, self.subject.detectors)
        begin = time.perf_counter()
        detectors = {label: self.subject.detectors[label] for label in labels}
        images = self.chunk.read()
        enough = None
        if self.bars is not None:
            enough = self.bars.of(self.direction)
        attack = self.perturbation
        if self.preparation is not None:
            (label,) = labels
            attack = self.preparation.fitted(label)
        scored = self.scorer.score(
            detectors,
            [images],
            attack,
            self.direction,
            enough,
            keep_images=self.keeps_images,
        )
        seconds = (time.perf_counter() - begin) / len(detectors)
        for scores in scored.scores.values():
            broken = int((~scores.isfinite()).sum())
            if broken:
                raise UserError(f"{broken} of {len(scores)} scores are not finite")
        cells = self.cells(scored, images.indices, seconds)
        more: dict[str, Any] = {}
        if scored.images is not None:
            more = {"images": scored.images.float().numpy(), "labels": images.labels.numpy()}
        for label, cell in cells.items():
            about = dict(cell.about)
            if enough is not None:
                about["enough"] = enough
            cells[label] = Cell({**cell.arrays, **more}, about)
        return cells


class AccuracyTask(ImagesTask):
    """Which images of one chunk the network classifies correctly, clean or under an attack.

    Args:
        model: the network.
        chunk: labelled images.
        label, attack: the attack; "none" and None for clean images.
        scorer: computes.
        set_index: position of the set among the evaluation's.
    """

    stage = "classify"

    def __init__(
        self,
        model: Model,
        chunk: Chunk,
        label: str,
        attack: Attack | None,
        scorer: Scorer,
        set_index: int = 0,
    ) -> None:
        self.set_index = set_index
        self.subject = model
        self.model = model.name
        self.attack = label
        self.perturbation = attack
        self.chunk = chunk
        self.scorer = scorer
        answers = fingerprint(chunk.read_labels())
        inputs = [model.net_fingerprint, fingerprint(attack), chunk.content, answers]
        self.name = fingerprint(["classify", code_version(), *inputs])
        self.keys = {"": self.name}
        self.title = _title(model.name, "accuracy", label, chunk)
        self.work = attack_work(attack) * len(chunk)

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Return the right answers."""
        self.scorer.bring(self.subject.net, self.subject.detectors)
        begin = time.perf_counter()
        images = self.chunk.read()
        scored = self.scorer.correct(self.subject.net, [images], self.perturbation)
        return self.cells(scored, images.indices, time.perf_counter() - begin)


class SanityTask(Task):
    """The alarms of a detector under attacks on a few images.

    Args:
        model, label: the detector.
        inliers, outliers: the images.
        attacks: by label.
        scorer: computes.
    """

    stage = "check"

    def __init__(
        self,
        model: Model,
        label: str,
        inliers: Chunk,
        outliers: Chunk,
        attacks: Mapping[str, Attack],
        scorer: Scorer,
    ) -> None:
        self.subject = model
        self.model = model.name
        self.inliers = inliers
        self.outliers = outliers
        self.attacks = attacks
        self.scorer = scorer
        code = code_version("metrics", "sanity")
        inputs = [model.fingerprint(label), attacks, inliers.content, outliers.content]
        self.name = fingerprint(["sanity", code, *inputs])
        self.keys = {label: self.name}
        self.title = f"{model.name}: sanity of {label}"
        self.work = _SANITY_WORK * max(1, len(attacks))

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Return the alarms as `warnings`."""
        self.scorer.bring(self.subject.net, self.subject.detectors)
        begin = time.perf_counter()
        (label,) = labels
        inliers = as_input(self.inliers.read().images, self.scorer.device)
        outliers = as_input(self.outliers.read().images, self.scorer.device)
        alarms = sanity.check(
            self.subject.detectors[label],
            inliers,
            outliers,
            *self.attacks.values(),
            name="",
            limit=max(len(inliers), len(outliers)),
        )
        warnings = [alarm.removeprefix(": ") for alarm in alarms]
        return {label: Cell({}, {"warnings": warnings, "seconds": time.perf_counter() - begin})}


def attack_work(attack: Attack | None) -> float:
    """Return how long an image takes, in clean scores."""
    if attack is None:
        return 1
    settings = attack.settings()
    return 1 + 3.0 * settings["steps"] * settings["restarts"]


def _title(model: str, subject: str, attack: str, chunk: Chunk) -> str:
    under = "" if attack == "none" else f" under {attack}"
    return f"{model}: {subject}{under} on {chunk.images.name} {chunk.start}-{chunk.stop}"
