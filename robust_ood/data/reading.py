"""How the batches of a plan are read: in this process, from the device's memory, or by worker
processes.

All three give the same batches: what is in a batch is settled before anyone reads it.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robust_ood.data.sets import ImageSet, Taken
from robust_ood.errors import UserError
from robust_ood.randomness import generator


class Batch(NamedTuple):
    """One training or evaluation batch.

    images: `(N, 3, H, W)`, uint8 from the loader and float in [0, 1] once on its device. labels:
    `(N,)`, -1 where there are none. outliers: `(M, 3, H, W)` like images; M = 0 without auxiliary
    outliers. indices: `(N,)` places in the set. epoch, step: which batch this is; they key every
    random draw made for it. Images that cannot be read are missing.
    """

    images: Tensor
    labels: Tensor
    outliers: Tensor
    indices: Tensor
    epoch: int
    step: int


class Request(NamedTuple):
    """Which images make a batch."""

    epoch: int
    step: int
    inliers: NDArray[np.int64]
    outliers: NDArray[np.int64]


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
        if self.workers < 0:
            raise UserError(f"workers: {self.workers} is negative")


class Reader(Dataset["_Read"]):
    """Reads the batches that are asked for, in order.

    Args:
        inliers: the set that each request's `inliers` are places in.
        outliers: likewise, or None.
        reading: how.
    """

    def __init__(self, inliers: ImageSet, outliers: ImageSet | None, reading: Reading) -> None:
        self.inliers, self.outliers, self.reading = inliers, outliers, reading
        self._from_inliers = _place(inliers, reading.device)
        self._from_outliers = _place(outliers, reading.device) if outliers is not None else None

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Return the batches.

        Raises: `UserError` when more images of a set than its share cannot be read.
        """
        for batch, bad_inliers, bad_outliers in self._parts(requests):
            self.inliers.note_unreadable(bad_inliers)
            if self.outliers is not None:
                self.outliers.note_unreadable(bad_outliers)
            yield _pinned(batch) if self.reading.pin and not self.reading.workers else batch

    def __getitem__(self, request: Request) -> _Read:
        found = self._from_inliers.take(torch.from_numpy(request.inliers))
        outliers, bad = (
            torch.empty((0, *found.images.shape[1:]), dtype=torch.uint8),
            tuple[str, ...](),
        )
        if self._from_outliers is not None and len(request.outliers):
            outliers, _, _, bad = self._from_outliers.take(torch.from_numpy(request.outliers))
        batch = Batch(
            found.images, found.labels, outliers, found.indices, request.epoch, request.step
        )
        return batch, found.unreadable, bad

    def _parts(self, requests: Iterable[Request]) -> Iterable[_Read]:
        if not self.reading.workers:
            return map(self.__getitem__, requests)
        return DataLoader(
            self,
            batch_size=None,
            sampler=requests,
            num_workers=self.reading.workers,
            pin_memory=self.reading.pin,
            # Forked workers share arrays and memory maps instead of copying them.
            multiprocessing_context=multiprocessing.get_context("fork")
            if sys.platform == "linux"
            else None,
            generator=generator(0, "worker processes"),  # or else it would draw from the global one
        )


class _Resident:
    """A set whose pixels are in a device's memory."""

    def __init__(self, images: ImageSet, device: torch.device) -> None:
        self.images = images
        self.pixels = torch.from_numpy(images.images[:]).to(device)  # (N, H, W, 3)

    def take(self, indices: Tensor) -> Taken:
        chosen = self.pixels.index_select(0, indices.to(self.pixels.device)).permute(0, 3, 1, 2)
        return Taken(chosen, self.images.read_labels(indices), indices)


_Read = tuple[Batch, tuple[str, ...], tuple[str, ...]]


def _place(images: ImageSet, device: torch.device | None) -> ImageSet | _Resident:
    return _Resident(images, device) if device is not None and images.in_memory else images


def _pinned(batch: Batch) -> Batch:
    def pin(images: Tensor) -> Tensor:
        return images if images.is_cuda else images.pin_memory()

    return batch._replace(
        images=pin(batch.images), outliers=pin(batch.outliers), labels=pin(batch.labels)
    )
