"""Concurrent requests scored together: one queue, one thread that computes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robust_ood.deployment.guard import Guard
from robust_ood.deployment.predict import records
from robust_ood.deployment.uploads import Limits, RefusedError

Record = dict[str, Any]


class _Waiting(NamedTuple):
    """An image `(C, H, W)` that waits to be scored, and where its record goes."""

    image: Tensor
    record: asyncio.Future[Record]


class Batcher:
    """Scores images of concurrent requests in common batches.

    Args:
        guard: the guard.
        limits: of the batch, the queue, and how long an image waits for others.
    """

    def __init__(self, guard: Guard, limits: Limits) -> None:
        self.guard = guard
        self.limits = limits
        self.unanswered = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to score; to be called inside the event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Answer what waits, and end."""
        await self._queue.put(None)
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def decide(self, images: Sequence[Tensor]) -> list[Record]:
        """Return the records of images `(C, H, W)`, uint8, of the network's size.

        Raises: `RefusedError` where too many wait already.
        """
        if self.unanswered + len(images) > self.limits.waiting:
            raise RefusedError(503, "busy: too many images wait; try again later")
        loop = asyncio.get_running_loop()
        futures = []
        self.unanswered += len(images)
        try:
            for image in images:
                waiting = _Waiting(image, loop.create_future())
                futures.append(waiting.record)
                self._queue.put_nowait(waiting)
            return list(await asyncio.gather(*futures))
        finally:
            self.unanswered -= len(images)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        ended = False
        while not ended:
            batch, ended = await self._collect()
            # A client that has gone away has cancelled its images.
            batch = [waiting for waiting in batch if not waiting.record.done()]
            if not batch:
                continue
            pixels = [waiting.image for waiting in batch]
            try:
                scored = await loop.run_in_executor(self._thread, self._score, pixels)
            except Exception as error:  # whatever it is, those who wait must hear of it
                for waiting in batch:
                    if not waiting.record.done():
                        waiting.record.set_exception(error)
                continue
            for waiting, record in zip(batch, scored, strict=True):
                if not waiting.record.done():
                    waiting.record.set_result(record)

    async def _collect(self) -> tuple[list[_Waiting], bool]:
        """Return the next images to score together, and whether they are the last."""
        first = await self._queue.get()
        if first is None:
            return [], True
        batch = [first]
        end = time.monotonic() + self.limits.patience / 1000
        while len(batch) < self.limits.batch:
            remaining = max(0.0, end - time.monotonic())
            try:
                following = (
                    self._queue.get_nowait()
                    if self._queue.qsize()
                    else await asyncio.wait_for(self._queue.get(), remaining)
                )
            except asyncio.TimeoutError:
                break
            if following is None:
                return batch, True
            batch.append(following)
        return batch, False

    def _score(self, images: list[Tensor]) -> list[Record]:
        return records(self.guard, self.guard(torch.stack(images)))
