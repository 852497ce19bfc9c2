"""Images of a set, by chunks that are stored and batches that fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import torch

from robust_ood.data import ImageSet
from robust_ood.data.sets import Taken
from robust_ood.evaluation.fingerprints import content

T = TypeVar("T")
CHUNK = 512
"""How many images are scored, stored and found again together, by default."""


class Chunk(NamedTuple):
    """The images `start` to `stop` of a set, and the fingerprint of their pixels."""

    images: ImageSet
    start: int
    stop: int
    content: str

    def read(self) -> Taken:
        """Return the images that can be read, uint8, with labels and indices."""
        taken = self.images.take(torch.arange(self.start, self.stop))
        self.images.note_unreadable(taken.unreadable)
        return taken


def chunks(images: ImageSet, limit: int | None, size: int = CHUNK) -> list[Chunk]:
    """Return a set, or its first `limit` images, in chunks of at most `size`."""
    total = min(limit or len(images), len(images))
    ends = [(start, min(start + size, total)) for start in range(0, total, size)]
    return [Chunk(images, start, stop, content(images, start, stop)) for start, stop in ends]


class Batches:
    """Splits work into batches; what runs out of memory is done again in halves.

    Args:
        size: images of the first batch.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._fitting: dict[Hashable, int] = {}

    def map(self, kind: Hashable, images: Taken, work: Callable[[Taken], T]) -> list[T]:
        """Return what `work` gives for consecutive parts of the images; a size that fits is kept
        for its kind.

        Results do not depend on the size but by rounding: attacks are keyed by the index of each
        image.
        """
        parts: list[T] = []
        start, count = 0, len(images.images)
        while start < count:
            size = self._fitting.get(kind, self.size)
            pixels, labels, indices = (column[start : start + size] for column in images[:3])
            part = Taken(pixels, labels, indices)
            try:
                parts.append(work(part))
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error) or len(part.images) == 1:
                    raise
            else:
                start += size
                continue
            # Out of the handler, whose traceback holds on to the tensors.
            self._fitting[kind] = max(1, len(part.images) // 2)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return parts


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return any(
        words in str(error)
        for words in ("not enough memory", "can't allocate memory", "out of memory")
    )
