"""The OOD attack on encoders as tasks: pairs matched once, then scored by each detector."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.attacks.encoder import OF_SCORES, Code, Encoder, EncoderAttack, encoder
from robust_ood.data import ImageSet
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.scoring import Chunk, Scorer, as_input, chunks
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import Model, Task
from robust_ood.evaluation.versions import code_version

_TRACED = 200
"""At most so many iterations of the loss are kept."""


@dataclass(frozen=True)
class Matching:
    """What the attack matches.

    Args:
        code: as in `attacks.encoder`.
        of: label of the detector whose code it is; None for the network's.
    """

    code: Code
    of: str | None = None

    @property
    def label(self) -> str:
        """What rows call it."""
        if self.of is None:
            return self.code
        return f"{self.code} of {self.of}"

    @property
    def is_of_score(self) -> bool:
        """Whether it is one number."""
        return self.code in OF_SCORES

    def encoder(self, model: Model) -> Encoder:
        """Return the callable that encodes images."""
        return encoder(model.net if self.of is None else model.detectors[self.of], self.code)

    def fingerprint(self, model: Model) -> str:
        """Return what the codes depend on."""
        subject = model.net_fingerprint
        if self.of is not None:
            subject = model.fingerprint(self.of)
        return fingerprint([self.code, subject])


class Pairs:
    """Inliers with their start images, in chunks.

    Args:
        inliers: the set.
        starts: one image for each inlier.
        size: pairs of a chunk.
    """

    def __init__(self, inliers: ImageSet, starts: ImageSet, size: int) -> None:
        self.inliers = inliers
        self.starts = starts
        self.size = size

    @cached_property
    def chunks(self) -> list[tuple[Chunk, Chunk]]:
        """Chunks of inliers, each with that of its starts."""
        inliers = chunks(self.inliers, None, self.size)
        starts = chunks(self.starts, None, self.size)
        return list(zip(inliers, starts, strict=True))


class MatchTask(Task):
    """The images of one chunk of pairs, found by the attack.

    The cell holds `images (n, C, H, W)` float32, the `codes` of the images and the `targets`
    `(n, D)`, squared `distances (n,)`, and `losses (iterations, n)` at `iterations`.

    Args:
        model: the network and its detectors.
        matching: what is matched.
        attack: its settings.
        inliers, starts: the pairs.
        scorer: says where to compute.
    """

    stage = "match"

    def __init__(
        self,
        model: Model,
        matching: Matching,
        attack: EncoderAttack,
        inliers: Chunk,
        starts: Chunk,
        scorer: Scorer,
    ) -> None:
        self.subject = model
        self.model = model.name
        self.attack = matching.label
        self.matching = matching
        self.settings = attack
        self.inliers = inliers
        self.starts = starts
        self.scorer = scorer
        parts = [matching.fingerprint(model), fingerprint(attack), inliers.content, starts.content]
        # Draws are keyed by the place of a pair.
        self.key = fingerprint(["match", code_version(), inliers.start, *parts])
        self.keys = {"": self.key}
        self.name = f"match-{self.key}"
        self.title = f"{starts.images.name}: matching {matching.label}"
        self.work = 2.0 * attack.steps * attack.restarts * len(inliers)

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Attack the chunk."""
        begin = time.perf_counter()
        self.scorer.bring(self.subject.net, self.subject.detectors)
        encode = self.matching.encoder(self.subject)
        inliers = as_input(read(self.inliers), self.scorer.device)
        starts = as_input(read(self.starts), self.scorer.device)
        indices = torch.arange(self.inliers.start, self.inliers.stop)
        matched = self.settings.search(encode, starts, inliers, indices)
        with torch.no_grad():
            codes = encode(matched.images)
            targets = encode(inliers)
        iterations = _traced(len(matched.losses))
        arrays = {
            "images": _array(matched.images),
            "codes": _array(codes),
            "targets": _array(targets),
            "distances": _array(matched.distances),
            "losses": _array(matched.losses)[iterations],
            "iterations": iterations,
        }
        return {"": Cell(arrays, {"seconds": time.perf_counter() - begin, "code": code_version()})}


class PairScoreTask(Task):
    """True scores of inliers, starts and generated images of one chunk: `(n,)` each.

    Args:
        match: has found the images.
        labels: of the detectors.
        store: has the images.
    """

    stage = "pairs"

    def __init__(self, match: MatchTask, labels: Sequence[str], store: Store) -> None:
        self.match = match
        self.model = match.model
        self.attack = match.attack
        self.store = store
        self.keys = {}
        for label in labels:
            detector = match.subject.fingerprint(label)
            self.keys[label] = fingerprint(["pairs", code_version(), detector, match.key])
        self.name = f"pairs-{fingerprint([match.key, sorted(self.keys.values())])}"
        self.title = f"{match.starts.images.name}: scoring {match.attack}"
        self.work = 3.0 * len(match.inliers)

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Score the chunk."""
        match = self.match
        match.scorer.bring(match.subject.net, match.subject.detectors)
        device = match.scorer.device
        cell = self.store.read(match.key)
        assert cell is not None  # else the failure of the match is reported
        images = {
            "inliers": as_input(read(match.inliers), device),
            "starts": as_input(read(match.starts), device),
            "generated": torch.from_numpy(cell.arrays["images"].copy()).to(device),
        }
        cells = {}
        for label in labels:
            detector = match.subject.detectors[label]
            with torch.no_grad():
                arrays = {side: _array(detector(each)) for side, each in images.items()}
            for side, scores in arrays.items():
                if not np.isfinite(scores).all():
                    raise FloatingPointError(f"scores of the {side} are not finite")
            cells[label] = Cell(arrays)
        return cells


def plan(
    model: Model,
    matchings: Sequence[Matching],
    attack: EncoderAttack,
    pairs: Pairs,
    scorer: Scorer,
) -> list[MatchTask]:
    """Return the tasks that match all pairs, each with its chunk."""
    tasks = []
    for matching in matchings:
        for inliers, starts in pairs.chunks:
            tasks.append(MatchTask(model, matching, attack, inliers, starts, scorer))
    return tasks


def read(chunk: Chunk) -> Tensor:
    """Return all images of a chunk, uint8 `(n, C, H, W)`.

    Raises: `UserError` naming the first image that cannot be read: pairs have no gaps.
    """
    return chunk.images.read(torch.arange(chunk.start, chunk.stop))


def _traced(count: int) -> NDArray[np.int64]:
    """Return which of so many iterations are kept, the first and the last among them."""
    kept: NDArray[np.int64] = np.unique(
        np.linspace(0, count - 1, min(count, _TRACED)).round().astype(np.int64)
    )
    return kept


def _array(values: Tensor) -> NDArray[Any]:
    return values.detach().float().contiguous().cpu().numpy()
