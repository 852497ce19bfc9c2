"""How planned batches are read: in this process, from the device's memory, or by worker processes.

All three give the same batches: what is in a batch is decided before any image is read.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robust_ood.arguments import check_fields
from robust_ood.data.memory import MEMORY_LIMIT
from robust_ood.data.sets import ImageSet, ReadImages
from robust_ood.data.sources.draws import keyed
from robust_ood.data.worker_signals import leave_signals_to_parent
from robust_ood.errors import UserError
from robust_ood.randomness import generator


class Batch(NamedTuple):
    """One training or evaluation batch; images that cannot be read are missing from it.

    images: `(N, C, H, W)`, uint8 from the loader and float in [0, 1] once on its device. labels:
    `(N,)`, -1 where there are none. outliers: `(M, C, H, W)` like images; M = 0 without auxiliary
    outliers. indices: `(N,)` places in the set. epoch, step: which batch this is; they key every
    random draw made for it. replay: how often in a row it was handed out before.
    """

    images: Tensor
    labels: Tensor
    outliers: Tensor
    indices: Tensor
    epoch: int
    step: int
    replay: int = 0


class BatchPlan(NamedTuple):
    """Which images make a batch: indices `(N,)` of inliers and `(M,)` of outliers."""

    epoch: int
    step: int
    inliers: NDArray[np.int64]
    outliers: NDArray[np.int64]


class ReadBatch(NamedTuple):
    """A batch, and descriptions of its images that could not be read."""

    batch: Batch
    unreadable_inliers: tuple[str, ...]
    unreadable_outliers: tuple[str, ...]


@dataclass(frozen=True)
class ReadingOptions:
    """How the images of an experiment are read; the batches do not depend on it.

    Args:
        workers: processes that read images that are not in memory, to train, validate and fit
            detectors, >= 0. Where training is on the CPU, they augment what they read. Evaluations
            read the images that they score by so many threads. Sets in memory are read without.
        memory_limit: bytes up to which a set of files is read into memory once, >= 0.
        on_device: keep the training sets in the GPU's memory if together they take less than a
            quarter of what is free.
    """

    workers: int = 0
    memory_limit: int = MEMORY_LIMIT
    on_device: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.workers < 0:
            raise UserError(
                f"data.reading.workers: expected a number of processes >= 0, got {self.workers}"
            )
        if self.memory_limit < 0:
            raise UserError(
                "data.reading.memory_limit: expected a number of bytes >= 0, got "
                f"{self.memory_limit}"
            )


@dataclass(frozen=True)
class Reading:
    """How a loader reads.

    Args:
        workers: processes that read ahead; 0 reads in this process, which is fastest for sets in
            memory.
        pin: put batches into page-locked memory, from which copies to a GPU overlap with computing.
        device: keep sets that are in memory on this device and gather batches there; None leaves
            them where they are.
    """

    workers: int = 0
    pin: bool = False
    device: torch.device | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.workers < 0:
            raise UserError(f"workers: expected a number of processes >= 0, got {self.workers}")


class Reader(Dataset["ReadBatch | UserError"]):
    """Reads planned batches, in order.

    Args:
        inliers: the set that each plan's `inliers` are indices of.
        outliers: the set of its `outliers`, or None.
        reading: how.
        seed, rank: of what a data set of the user's draws when it is read.
        augment: what each batch goes through once it is read, or None.
    """

    def __init__(
        self,
        inliers: ImageSet,
        outliers: ImageSet | None,
        reading: Reading,
        seed: int = 0,
        rank: int = 0,
        augment: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.inliers = inliers
        self.outliers = outliers
        self.reading = reading
        self._inlier_source = _on_device(inliers, reading.device)
        self._outlier_source: ImageSet | DeviceImages | None = None
        if outliers is not None:
            self._outlier_source = _on_device(outliers, reading.device)

    def batches(self, plans: Iterable[BatchPlan]) -> Iterator[Batch]:
        """Return the batches.

        Raises: `UserError` when more images of a set cannot be read than its share.
        """
        pin_here = self.reading.pin and not self.reading.workers  # else the workers' loader does
        for read in self._read(plans):
            if isinstance(read, UserError):
                raise read
            batch, unreadable_inliers, unreadable_outliers = read
            self.inliers.note_unreadable(unreadable_inliers)
            if self.outliers is not None:
                self.outliers.note_unreadable(unreadable_outliers)
            yield _pinned(batch) if pin_here else batch

    def __getitem__(self, plan: BatchPlan) -> ReadBatch | UserError:
        """Return a batch, or the user's mistake: what a worker raises comes with its traceback."""
        try:
            read = self._read_batch(plan)
            if self.augment is None:
                return read
            return read._replace(batch=self.augment(read.batch))
        except UserError as error:
            return error

    def _read_batch(self, plan: BatchPlan) -> ReadBatch:
        keys = (plan.epoch, plan.step, self.rank)
        with keyed(self.inliers.images, self.seed, "inliers", *keys):
            inliers = self._inlier_source.take(torch.from_numpy(plan.inliers))
        outliers = torch.empty((0, *inliers.images.shape[1:]), dtype=torch.uint8)
        unreadable: tuple[str, ...] = ()
        if self._outlier_source is not None and len(plan.outliers):
            assert self.outliers is not None
            with keyed(self.outliers.images, self.seed, "outliers", *keys):
                read = self._outlier_source.take(torch.from_numpy(plan.outliers))
            outliers = read.images
            unreadable = read.unreadable
        batch = Batch(
            inliers.images, inliers.labels, outliers, inliers.indices, plan.epoch, plan.step
        )
        return ReadBatch(batch, inliers.unreadable, unreadable)

    def _read(self, plans: Iterable[BatchPlan]) -> Iterable[ReadBatch | UserError]:
        if not self.reading.workers:
            return map(self.__getitem__, plans)
        # Forked workers share arrays and memory maps instead of copying them.
        context = multiprocessing.get_context("fork") if sys.platform == "linux" else None
        return DataLoader(
            self,
            batch_size=None,
            sampler=plans,
            num_workers=self.reading.workers,
            pin_memory=self.reading.pin,
            multiprocessing_context=context,
            worker_init_fn=leave_signals_to_parent,
            # Without one, it would draw from the global generator.
            generator=generator(0, "worker processes"),
        )


class DeviceImages:
    """A set whose pixels are in a device's memory; it gives what `ImageSet.take` gives."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.images = images
        self.pixels = torch.from_numpy(images.images[:]).to(device)  # (N, H, W, C)

    def take(self, indices: Tensor) -> ReadImages:
        """Return the images and labels at `indices`."""
        pixels = self.pixels.index_select(0, indices.to(self.pixels.device))  # (n, H, W, C)
        return ReadImages(pixels.permute(0, 3, 1, 2), self.images.read_labels(indices), indices)


def _on_device(images: ImageSet, device: torch.device | None) -> ImageSet | DeviceImages:
    if device is None or not images.in_memory:
        return images
    return DeviceImages(images, device)


def _pinned(batch: Batch) -> Batch:
    return batch._replace(
        images=_pin(batch.images), outliers=_pin(batch.outliers), labels=_pin(batch.labels)
    )


def _pin(images: Tensor) -> Tensor:
    return images if images.is_cuda else images.pin_memory()
