"""Which attacked images are settled: no reported number depends on how far they still go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from robust_ood.attacks.objectives import Direction
from robust_ood.evaluation.scoring import TestSet
from robust_ood.evaluation.store import Cell, Store
from robust_ood.metrics import deployed_threshold


class Bars:
    """The scores of one detector beyond which an attacked image is settled.

    An attacked inlier is settled once its score is below the clean score of every OOD image of
    every set, and below the deployed threshold. The rule is exact:

    - An attack only lowers an inlier further, and only raises outliers above their clean scores.
      So the inlier stays below every OOD image, clean or attacked, and is rejected, whatever the
      rest of the attack would find.
    - AUROC and the detection error compare inliers with OOD images: all its comparisons are
      decided. Intervals, paired tests and bootstraps are functions of the same comparisons.
    - FPR95 counts the OOD images at or above a quantile of the inliers. If the quantile falls on
      a settled inlier, all OOD images are above it, and they are above the lower value, too. If
      not, the quantile is another image's, and settled ones are below it before and after.

    - AUPR is a function of the same comparisons and of ties within one class. It is the same unless
      settled images end at exactly equal scores.

    For outliers all signs are turned around: above every clean inlier and the threshold.

    Args:
        store: has the clean scores.
        sets: those of the evaluation.
        keys: of the cells of clean scores, by the position of their set.
        skip: False settles no image.
    """

    def __init__(
        self,
        store: Store,
        sets: Sequence[TestSet],
        keys: Mapping[int, Sequence[str]],
        *,
        skip: bool = True,
    ) -> None:
        self.store = store
        self.sets = sets
        self.keys = keys
        self.skip = skip
        self._bars: dict[int, float] | None = None

    def of(self, direction: Direction) -> float | None:
        """Return the bar of an attack in this direction, or None where no image is settled.

        So it is while clean scores are missing.
        """
        if self._bars is None and self.skip:
            self._bars = self._read()
        if self._bars is None:
            return None
        return self._bars[direction]

    def holds(self, cell: Cell, direction: Direction) -> bool:
        """Return whether what an attack left alone in a stored cell is settled here, too.

        Other sets, which the cell's evaluation did not have, may have moved the bar.
        """
        enough = cell.about.get("enough")
        if enough is None:
            return True
        scores = direction * torch.from_numpy(cell.arrays["scores"])
        left_alone = scores < direction * enough
        bar = self.of(direction)
        if bar is None:
            return not bool(left_alone.any())
        return not bool((left_alone & ~(scores < direction * bar)).any())

    def _read(self) -> dict[int, float] | None:
        columns: dict[int, Tensor] = {}
        for index in range(len(self.sets)):
            cells = []
            for key in self.keys[index]:
                cell = self.store.read(key)
                if cell is None:
                    return None
                cells.append(torch.from_numpy(cell.arrays["scores"]))
            columns[index] = torch.cat(cells)
        low = high = deployed_threshold(columns[threshold_set(self.sets)])
        for index, test_set in enumerate(self.sets):
            if not test_set.is_tested or not len(columns[index]):
                continue
            if test_set.direction == 1:
                high = max(high, columns[index].max().item())
            else:
                low = min(low, columns[index].min().item())
        return {1: low, -1: high}


def threshold_set(sets: Sequence[TestSet]) -> int:
    """Return the position of the set whose clean scores give the deployed threshold."""
    if sets[-1].group == "validation":
        return len(sets) - 1
    return 0
