"""Scores as rows need them: the chunks of a set as one column, and sets that count as inliers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_ood.evaluation.scoring import TestSet
from robust_ood.evaluation.store import Cell

POOLED = " + "
"""Between the names of sets whose images are pooled."""


class Column(NamedTuple):
    """All scores of one set, `(N,)`, and the seconds they took.

    wins, attempts: on how many images each member of the attack won, and was run.
    """

    scores: Tensor
    seconds: float
    wins: dict[str, int]
    attempts: dict[str, int]


class Spectrum(NamedTuple):
    """Which sets count as inliers.

    prefix: of the groups of its rows. name: of the inliers. inliers: positions of their sets.
    """

    prefix: str
    name: str
    inliers: tuple[int, ...]


def spectra_of(sets: Sequence[TestSet], scored: Collection[int]) -> list[Spectrum]:
    """Return the inliers alone, then the full spectrum, where shifted inliers are scored.

    Source: full-spectrum OOD detection (Yang et al. 2023, as OpenOOD v1.5 computes it): the scores
    of the test set and of all shifted sets are pooled, each image with the same weight.

    Args:
        sets: the in-distribution first.
        scored: positions of the sets that a model's tasks score; certificates leave out shifted
            ones.
    """
    spectra = [Spectrum("", sets[0].images.name, (0,))]
    positions = [0]
    for index, images in enumerate(sets):
        if images.group == "shifted" and index in scored:
            positions.append(index)
    if len(positions) > 1:
        name = POOLED.join(sets[index].images.name for index in positions)
        spectra.append(Spectrum("full-", name, tuple(positions)))
    return spectra


def pooled(columns: Sequence[Column | None]) -> Column | None:
    """Return the scores of several sets as one column, or None where one is missing."""
    scores = []  # (n,) each
    seconds = 0.0
    for column in columns:
        if column is None:
            return None
        scores.append(column.scores)
        seconds += column.seconds
    return Column(torch.cat(scores), seconds, {}, {})


def joined(cells: Sequence[Cell]) -> Column:
    """Return the cells of a set's chunks as one column."""
    wins: Counter[str] = Counter()
    attempts: Counter[str] = Counter()
    seconds = 0.0
    scores = []  # (n,) each
    for cell in cells:
        scores.append(cell.arrays["scores"])
        seconds += float(cell.about["seconds"])
        if "winners" in cell.arrays:
            members = cell.about["members"]
            counts = np.bincount(cell.arrays["winners"], minlength=len(members)).tolist()
            wins.update(dict(zip(members, counts, strict=True)))
            # Cells of earlier releases do not say it.
            attempts.update(cell.about.get("attempts", {}))
    return Column(torch.from_numpy(np.concatenate(scores)), seconds, dict(wins), dict(attempts))
