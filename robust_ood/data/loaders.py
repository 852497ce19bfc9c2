"""Loaders whose every batch is a pure function of (seed, epoch, step, rank).

They hold nothing that a checkpoint would have to restore except how far the epoch has gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from robust_ood.data.reading import Batch, Reader, Reading, Request
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError
from robust_ood.randomness import generator


class TrainingLoader:
    """Shuffled batches of inliers, each with a batch of auxiliary outliers.

    Inliers are shuffled anew each epoch and an incomplete last batch is left out. Outliers are one
    endless stream of shuffled passes, so all are used equally often however the two sets' sizes
    compare. Ranks get disjoint shards of both. Images that turn out unreadable are missing from
    their batch.

    Args:
        inliers: labelled in-distribution images.
        outliers: auxiliary outliers, or None.
        batch_size: inliers per batch and rank.
        outlier_batch_size: outliers per batch and rank.
        seed: the run's seed.
        rank, world: this process and the number of processes.
        reading: who reads the images; the batches do not depend on it.
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
        reading: Reading | None = None,
    ) -> None:
        self.inliers, self.outliers = inliers, outliers if outlier_batch_size else None
        self.batch_size, self.outlier_batch_size = batch_size, outlier_batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch, self.position = 0, 0
        self.sampler = self  # Lightning calls `loader.sampler.set_epoch`
        self._resume: tuple[int, int] | None = None
        self._reader = Reader(inliers, self.outliers, reading or Reading())
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
        # A restored position counts once and for its own epoch: an epoch that someone cut short is
        # not continued.
        resume, self._resume = self._resume, None
        self.position = resume[1] if resume is not None and resume[0] == self.epoch else 0
        for batch in self._reader.batches(self._requests(self.epoch, self.position)):
            self.position = batch.step + 1
            if not len(batch.images) or (self.outliers is not None and not len(batch.outliers)):
                raise UserError(f"{self.inliers.name}: nothing of batch {batch.step} can be read")
            yield batch

    def _requests(self, epoch: int, start: int) -> Iterator[Request]:
        order = torch.randperm(
            len(self.inliers), generator=generator(self.seed, "inlier order", epoch)
        )
        for step in range(start, len(self)):
            first = (step * self.world + self.rank) * self.batch_size
            indices = order[first : first + self.batch_size]
            outliers = self._outlier_indices(epoch * len(self) + step)
            yield Request(epoch, step, indices.numpy(), outliers.numpy())

    def _outlier_indices(self, batch: int) -> Tensor:
        if self.outliers is None:
            return torch.empty(0, dtype=torch.int64)
        first = (batch * self.world + self.rank) * self.outlier_batch_size
        places = torch.arange(first, first + self.outlier_batch_size)
        passes = places // len(self.outliers)
        parts = []
        for turn in range(int(passes[0]), int(passes[-1]) + 1):
            parts.append(
                self._outlier_order(turn, len(self.outliers))[
                    places[passes == turn] % len(self.outliers)
                ]
            )
        return torch.cat(parts)

    def _outlier_order(self, turn: int, count: int) -> Tensor:
        if getattr(self, "_cached_turn", None) != turn:
            self._cached_turn = turn
            self._cached_order = torch.randperm(
                count, generator=generator(self.seed, "outlier order", turn)
            )
        return self._cached_order

    def state_dict(self) -> dict[str, int]:
        """Return which epoch it is and how many of its batches have been handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue that epoch after that many batches, when it is next asked for."""
        self._resume = (state["epoch"], state["position"])


class EvaluationLoader:
    """All images of a set once, in order; rank r of R gets the images r, r + R, r + 2R, ...

    Args:
        images: the set.
        batch_size: images per batch and rank.
        limit: use only the first so many images.
        rank, world: this process and the number of processes.
        reading: who reads the images.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        limit: int | None = None,
        rank: int = 0,
        world: int = 1,
        reading: Reading | None = None,
    ) -> None:
        self.images, self.batch_size = images, batch_size
        self.indices = torch.arange(min(limit or len(images), len(images)))[rank::world]
        self._reader = Reader(images, None, reading or Reading())

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return (batch for batch in self._reader.batches(self._requests()) if len(batch.images))

    def _requests(self) -> Iterator[Request]:
        nothing = torch.empty(0, dtype=torch.int64).numpy()
        for step in range(len(self)):
            indices = self.indices[step * self.batch_size : (step + 1) * self.batch_size]
            yield Request(0, step, indices.numpy(), nothing)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images `(N, C, H, W)` as floats in [0, 1]."""
    return images.div(
        255
    ).float()  # dividing integers gives floats already: one pass instead of two
