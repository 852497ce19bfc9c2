"""Loaders whose every batch is a pure function of (seed, epoch, step, rank).

All that a checkpoint has to restore is how far the epoch has gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.data.fields import require_batch, require_count
from robust_ood.data.outlier_stream import OutlierStream
from robust_ood.data.reading import Batch, BatchPlan, Reader, Reading
from robust_ood.data.sets import ImageSet
from robust_ood.errors import UserError
from robust_ood.randomness import generator


class TrainingLoader:
    """Shuffled batches of inliers, each with a batch of auxiliary outliers.

    Inliers are shuffled again in each epoch and an incomplete last batch is dropped. Outliers are
    one endless stream of shuffled passes, so that all are used equally often whatever the two
    sets' sizes; of several sources, each as often as its weight says (`OutlierStream`). Ranks get
    disjoint shards of both. Unreadable images are missing from their batch.

    With `replays` m, each batch comes m times in a row, under the epoch and step of its first time.
    An epoch has as many steps as ever, of an m-th of the batches; inliers are shuffled again when
    all have been used. The last batch of an epoch comes less often where m does not divide it.

    Args:
        inliers: labelled in-distribution images.
        outliers: auxiliary outliers, or None.
        batch_size: inliers per batch and rank.
        outlier_batch_size: outliers per batch and rank.
        seed: the run's seed.
        rank, world: this process and the number of processes.
        reading: how the images are read; the batches do not depend on it.
        augment: what each batch goes through where it is read, in the worker if there are any; it
            draws by the batch's keys.
    """

    @typed
    def __init__(  # noqa: PLR0913  # each argument is a setting of its own
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
        augment: Callable[[Batch], Batch] | None = None,
    ) -> None:
        require_batch("batch_size", batch_size)
        require_batch("outlier_batch_size", outlier_batch_size, 0)
        _require_rank(rank, world)
        self.inliers = inliers
        self.outliers = outliers if outlier_batch_size else None
        self.batch_size = batch_size
        self.outlier_batch_size = outlier_batch_size
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.position = 0
        self.sampler = self  # Lightning calls `loader.sampler.set_epoch`
        self._resume: tuple[int, int] | None = None
        self.stream: OutlierStream | None = None
        if self.outliers is not None:
            self.stream = OutlierStream(self.outliers, seed)
        self.replays = 1
        """How often in a row each batch is handed out, >= 1."""
        self.choose_outliers: Callable[[int], Tensor] | None = None
        """An epoch to the indices of its outliers, asked before its first batch; None for all."""
        self._chosen: Tensor | None = None
        self._reader = Reader(inliers, self.outliers, reading or Reading(), seed, rank, augment)
        if len(self) == 0:
            raise UserError(
                f"batch_size: {batch_size} on {world} process(es) is more than the {len(inliers)} "
                f"images of {inliers.name}"
            )

    def __len__(self) -> int:
        return len(self.inliers) // (self.batch_size * self.world)

    @property
    def different_batches(self) -> int:
        """How many different batches an epoch has."""
        return math.ceil(len(self) / self.replays)

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch the next iteration is."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        self.position = self._take_resumed_position()
        first, replay = divmod(self.position, self.replays)
        for batch in self._reader.batches(self._plans(self.epoch, first)):
            no_outliers = self.outliers is not None and not len(batch.outliers)
            if no_outliers or not len(batch.images):
                raise UserError(f"{self.inliers.name}: no image of batch {batch.step} can be read")
            for again in range(replay, min(self.replays, len(self) - batch.step)):
                self.position = batch.step + again + 1
                yield batch._replace(replay=again)
            replay = 0

    def state_dict(self) -> dict[str, int]:
        """Return which epoch it is and how many of its batches have been handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue that epoch after that many batches, at its next iteration."""
        self._resume = (state["epoch"], state["position"])

    def _take_resumed_position(self) -> int:
        """Return the restored position once, for its own epoch only: an epoch that was cut short
        on purpose is not continued.
        """
        resume = self._resume
        self._resume = None
        if resume is None:
            return 0
        epoch, position = resume
        return position if epoch == self.epoch else 0

    def _plans(self, epoch: int, start: int) -> Iterator[BatchPlan]:
        if self.outliers is not None and self.choose_outliers is not None:
            self._chosen = self.choose_outliers(epoch)
        shuffle = -1
        for place in range(start, self.different_batches):
            count = epoch * self.different_batches + place  # over all epochs
            if shuffle != count // len(self):
                shuffle = count // len(self)
                order = self._order(shuffle)
            first = (count % len(self) * self.world + self.rank) * self.batch_size
            inliers = order[first : first + self.batch_size]
            outliers = self._outlier_indices(count, place)
            yield BatchPlan(epoch, place * self.replays, inliers.numpy(), outliers.numpy())

    def _order(self, shuffle: int) -> Tensor:
        source = generator(self.seed, "inlier order", shuffle)
        return torch.randperm(len(self.inliers), generator=source)

    def _outlier_indices(self, count: int, place: int) -> Tensor:
        """Return the outliers of a batch, counted over all epochs and within its own: a piece of
        the stream, or of what was chosen for the epoch.
        """
        if self.stream is None:
            return torch.empty(0, dtype=torch.int64)
        if self._chosen is not None:
            return self._chosen_indices(place, self._chosen)
        first = (count * self.world + self.rank) * self.outlier_batch_size
        return self.stream.indices(torch.arange(first, first + self.outlier_batch_size))

    def _chosen_indices(self, place: int, chosen: Tensor) -> Tensor:
        """Return this process's piece of the chosen outliers at a place, from the start again."""
        first = (place * self.world + self.rank) * self.outlier_batch_size
        places = torch.arange(first, first + self.outlier_batch_size)
        return chosen[places % len(chosen)]


class EvaluationLoader:
    """All images of a set once, in order; rank r of R gets the images r, r + R, r + 2R, ...

    Args:
        images: the set.
        batch_size: images per batch and rank.
        limit: use only the first this many images, >= 1; None uses all.
        rank, world: this process and the number of processes.
        reading: how the images are read.
    """

    @typed
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
        require_batch("batch_size", batch_size)
        _require_rank(rank, world)
        if limit is not None:
            require_count("limit", limit, 1)
        self.images = images
        self.batch_size = batch_size
        count = min(limit or len(images), len(images))
        self.indices = torch.arange(count)[rank::world]
        self._reader = Reader(images, None, reading or Reading())

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._reader.batches(self._plans()):
            if len(batch.images):
                yield batch

    def _plans(self) -> Iterator[BatchPlan]:
        no_outliers = torch.empty(0, dtype=torch.int64).numpy()
        for step in range(len(self)):
            indices = self.indices[step * self.batch_size : (step + 1) * self.batch_size]
            yield BatchPlan(0, step, indices.numpy(), no_outliers)


def _require_rank(rank: int, world: int) -> None:
    require_count("world", world, 1)
    require_count("rank", rank, 0, world - 1)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images `(N, C, H, W)` as floats in [0, 1]."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        raise UserError(f"images: expected a tensor of uint8 in 0..255, got {kind}")
    # Converting first: on the CPU, torch divides integers by a loop that is not vectorised.
    return images.float().div_(255)
