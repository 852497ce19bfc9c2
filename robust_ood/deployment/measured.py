"""What a guard accepts of the images of an evaluation, clean and attacked, at its own threshold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from robust_ood.deployment.description import Measured
from robust_ood.errors import UserError
from robust_ood.evaluation import Results, read_cell
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.records import CellFiles


def rates_of(scores: torch.Tensor, threshold: float) -> tuple[int, int]:
    """Return how many of the scores `(N,)` are accepted, and how many there are.

    The threshold is compared in float32, as a guard does.
    """
    accepted = scores >= torch.tensor(threshold).to(scores.dtype)
    return int(accepted.sum()), len(scores)


class EvaluationScores:
    """The stored scores of one network in a folder of results.

    Args:
        folder: as `robust-ood evaluate` wrote it.
        net: the guard's network, which must be the one evaluated.

    Raises: `UserError` for a folder without results, or results of other networks.
    """

    def __init__(self, folder: Path, net: nn.Module) -> None:
        self.folder = folder
        self.results = Results.read(folder)
        self.model = self._model_of(net)

    def rates(self, label: str, threshold: float) -> list[Measured]:
        """Return what a detector accepts of each evaluated set at a threshold.

        Raises: `UserError` where the detector was not evaluated.
        """
        measured = []
        attacks = self._attacks()
        for cell in self.results.cells:
            if cell.model != self.model or cell.detector != label:
                continue
            scores = torch.from_numpy(self.scores(cell))
            accepted, count = rates_of(scores, threshold)
            norm, radius = attacks.get(cell.attack, ("", 0.0))
            measured.append(
                Measured(cell.images, cell.group, cell.attack, accepted, count, radius, norm)
            )
        if not measured:
            labels = sorted({row.detector for row in self.results.rows if row.model == self.model})
            raise UserError(
                f"results: {self.folder} has no scores of the detector {label!r}; it has "
                f"{', '.join(labels) or 'none'}"
            )
        return measured

    def clean(self, label: str, images: str) -> NDArray[np.float64] | None:
        """Return a detector's clean scores `(N,)` of an in-distribution set, where it has them."""
        for cell in self.results.cells:
            key = (cell.model, cell.detector, cell.attack, cell.images, cell.group)
            if key == (self.model, label, "none", images, "id"):
                return self.scores(cell)
        return None

    def scores(self, cell: CellFiles) -> NDArray[np.float64]:
        """Return the scores `(N,)` of a set."""
        parts = []
        for name in cell.files:
            arrays = read_cell(self.folder / name).arrays
            parts.append(arrays["scores"])
        return np.concatenate(parts)

    def _attacks(self) -> Mapping[str, tuple[str, float]]:
        attacks = {}
        for row in self.results.rows:
            if row.attack != "none":
                attacks[row.attack] = (row.norm, row.radius)
        return attacks

    def _model_of(self, net: nn.Module) -> str:
        """Return what the results call the network."""
        wanted = fingerprint(dict(net.state_dict()))
        networks = self.results.environment.get("networks", {})
        for name, weights in networks.items():
            if weights == wanted:
                return str(name)
        listed = ", ".join(map(str, networks)) or "none"
        raise UserError(
            f"results: {self.folder} has no results of this checkpoint's network; it has those of "
            f"{listed}, with other weights"
        )
