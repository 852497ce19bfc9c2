"""What a search has scored, kept in its output folder, so that a stopped search goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robust_ood.attacks import Attack
from robust_ood.detectors import Detector
from robust_ood.detectors.search import Scorer
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.store import Cell, FolderStore
from robust_ood.evaluation.versions import code_version


class StoredScorer:
    """Scores batches as another scorer does, and each one only once.

    A batch's scores are a cell of the store of `evaluate.py`: under the fingerprint of the
    detector, the images and the attack, so nothing else that changes makes them wrong.

    Args:
        scorer: computes what is not stored.
        net: the network of all detectors.
        attack: what the scorer attacks with, if it does.
        folder: of the search; the store is in it.

    stored, computed: how many batches were read and how many were scored.
    """

    def __init__(self, scorer: Scorer, net: nn.Module, attack: Attack | None, folder: Path) -> None:
        self.stored = 0
        self.computed = 0
        self._scorer = scorer
        self._attack = fingerprint(attack)
        self._attacks = attack is not None
        self._known = {id(net): fingerprint(net)}
        self._store = FolderStore(folder)
        # The objects are kept, too: an id is one's own only while the object lives.
        self._fingerprints: dict[int, tuple[Any, str]] = {}

    def __call__(self, detector: Detector, images: Tensor, side: Literal[1, -1]) -> Tensor:
        """Return the scores `(N,)` of images `(N, C, H, W)`."""
        # Clean scores are the same on both sides.
        direction = side if self._attacks else 0
        parts = [self._fingerprint(detector), self._attack, direction, fingerprint(images.cpu())]
        key = fingerprint(["search", code_version(), *parts])
        with self._store.claim(key, "a search's batch", wait=True):
            cell = self._store.read(key)
            if cell is not None:
                self.stored += 1
                return torch.from_numpy(cell.arrays["scores"].copy()).to(images.device)
            scores = self._scorer(detector, images, side)
            self.computed += 1
            self._store.write(key, Cell({"scores": scores.float().cpu().numpy()}))
        return scores

    def _fingerprint(self, detector: Detector) -> str:
        if id(detector) not in self._fingerprints:
            text = fingerprint(detector, self._known)
            self._fingerprints[id(detector)] = (detector, text)
        return self._fingerprints[id(detector)][1]
