"""Loaders whose every batch is a pure function of (seed, epoch, step, rank).

They hold nothing that a checkpoint would have to restore except how far the epoch has gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError
from robust_ood.randomness import generator


class Batch(NamedTuple):
    """One training or evaluation batch.

    images: `(N, 3, H, W)`, uint8 from the loader and float in [0, 1] once on its device. labels: `(N,)`, -1 where there
    are none. outliers: `(M, 3, H, W)` like images; M = 0 without auxiliary outliers. indices: `(N,)` places in the set.
    epoch, step: which batch this is; they key every random draw made for it.
    """

    images: Tensor
    labels: Tensor
    outliers: Tensor
    indices: Tensor
    epoch: int
    step: int


class TrainingLoader:
    """Shuffled batches of inliers, each with a batch of auxiliary outliers.

    Inliers are shuffled anew each epoch and an incomplete last batch is left out. Outliers are one endless stream of
    shuffled passes, so all of them are used equally often however the two sets' sizes compare. Ranks get disjoint shards
    of both.

    Args:
        inliers: labelled in-distribution images.
        outliers: auxiliary outliers, or None.
        batch_size: inliers per batch and rank.
        outlier_batch_size: outliers per batch and rank.
        seed: the run's seed.
        rank, world: this process and the number of processes.
    """

    def __init__(
        self,
        inliers: ImageSet,
        outliers: ImageSet | None,
        *,
        batch_size: int,
        outlier_batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.inliers, self.outliers = inliers, outliers
        self.batch_size, self.outlier_batch_size = batch_size, outlier_batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch, self.position = 0, 0
        self.sampler = self  # Lightning calls `loader.sampler.set_epoch`
        if len(self) == 0:
            raise UserError(
                f"batch_size: {batch_size} on {world} process(es) is more than the {len(inliers)} images of "
                f"{inliers.name}"
            )

    def __len__(self) -> int:
        return len(self.inliers) // (self.batch_size * self.world)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        # Whoever iterates may stop after the last batch without asking for more: that, too, ends the epoch.
        start = self.position % len(self)
        order = torch.randperm(len(self.inliers), generator=generator(self.seed, "inlier order", self.epoch))
        for step in range(start, len(self)):
            self.position = step + 1
            yield self._batch(order, step)

    def _batch(self, order: Tensor, step: int) -> Batch:
        first = (step * self.world + self.rank) * self.batch_size
        indices = order[first : first + self.batch_size]
        return Batch(
            self.inliers.read(indices),
            self.inliers.read_labels(indices),
            self._outliers(self.epoch * len(self) + step),
            indices,
            self.epoch,
            step,
        )

    def _outliers(self, batch: int) -> Tensor:
        if self.outliers is None or self.outlier_batch_size == 0:
            return torch.empty((0, 3, *self.inliers.image_shape), dtype=torch.uint8)
        first = (batch * self.world + self.rank) * self.outlier_batch_size
        places = torch.arange(first, first + self.outlier_batch_size)
        passes = places // len(self.outliers)
        parts = [
            self._outlier_order(turn)[places[passes == turn] % len(self.outliers)]
            for turn in sorted(set(passes.tolist()))
        ]
        return self.outliers.read(torch.cat(parts))

    def _outlier_order(self, turn: int) -> Tensor:
        assert self.outliers is not None
        if getattr(self, "_cached_turn", None) != turn:
            self._cached_turn = turn
            draw = generator(self.seed, "outlier order", turn)
            self._cached_order = torch.randperm(len(self.outliers), generator=draw)
        return self._cached_order

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the current epoch have been handed out."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue the current epoch after that many batches."""
        self.position = state["position"]


class EvaluationLoader:
    """All images of a set once, in order; rank r of R gets the images r, r + R, r + 2R, ...

    Args:
        images: the set.
        batch_size: images per batch and rank.
        limit: use only the first so many images.
        rank, world: this process and the number of processes.
    """

    def __init__(
        self, images: ImageSet, *, batch_size: int, limit: int | None = None, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.batch_size = images, batch_size
        self.indices = torch.arange(min(limit or len(images), len(images)))[rank::world]

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        nothing = torch.empty((0, 3, *self.images.image_shape), dtype=torch.uint8)
        for step, indices in enumerate(self.indices.split(self.batch_size)):
            read = self.images.read(indices), self.images.read_labels(indices)
            yield Batch(*read, nothing, indices, 0, step)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as floats in [0, 1]."""
    return images.float().div_(255)
