"""Indexes of faiss over a bank of features: which of its rows are near.

faiss is asked for rows alone. Distances, and their gradients, are computed from the rows that it
finds, so that scores are those of an exact search wherever the same row is found.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from robust_ood.errors import UserError

IndexKind = Literal["exact", "faiss-flat", "faiss-ivf"]
"""How neighbours are searched: by ours or faiss's exact search, or by faiss's inverted lists."""
_POINTS_PER_LIST = 39
"""Fewer points a list are too few to place its centre; faiss warns of them."""


class NeighbourIndex:
    """An index of faiss over the rows of a bank.

    Both kinds are deterministic. faiss's HNSW is not offered: its graph depends on how threads take
    turns while it is built, and so would the scores.

    Args:
        kind: "faiss-flat" compares with every row. "faiss-ivf" divides the rows among `4 sqrt(B)`
            lists by k-means and compares with those of the nearest lists.
        bank: `(B, D)`.
        probes: how many lists "faiss-ivf" looks into.
    """

    def __init__(self, kind: IndexKind, bank: Tensor, probes: int) -> None:
        self.library = library()
        rows = bank.detach().float().cpu().contiguous().numpy()
        width = bank.shape[1]
        if kind == "faiss-flat":
            self.index = self.library.IndexFlatL2(width)
        else:
            self.index = self._lists(rows, probes)
        self.index.add(rows)

    def _lists(self, rows: Any, probes: int) -> Any:
        count = min(round(4 * math.sqrt(len(rows))), len(rows) // _POINTS_PER_LIST)
        count = max(count, 1)
        centres = self.library.IndexFlatL2(rows.shape[1])
        index = self.library.IndexIVFFlat(centres, rows.shape[1], count)
        index.own_fields = False
        self._centres = centres  # which the index refers to without owning
        index.train(rows)
        index.nprobe = min(probes, count)
        return index

    def nearest(self, features: Tensor, count: int) -> Tensor:
        """Return the rows of the `count` nearest, nearest first, `(N, count)` int64.

        Args:
            features: `(N, D)`.
            count: at most the number of the bank's rows.

        A row of -1 says that the lists looked into hold no more.
        """
        queries = features.detach().float().cpu().contiguous().numpy()
        _, rows = self.index.search(queries, count)
        return torch.from_numpy(rows).to(features.device)


def library() -> Any:
    """Return faiss. Raises: `UserError` naming the extra where it is not installed."""
    try:
        return import_module("faiss")
    except ImportError as error:
        raise UserError(
            'index: the kinds of faiss need the package faiss; pip install "robust-ood[neighbours]"'
        ) from error


def require_kind(kind: str) -> None:
    """Raise `UserError` for a kind that does not exist, or whose library is missing."""
    if kind not in get_args(IndexKind):
        raise UserError(f"index: expected one of {', '.join(get_args(IndexKind))}, got {kind!r}")
    if kind != "exact":
        library()
