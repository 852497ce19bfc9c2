"""Data sets whose items are drawn: each read of an item may give another image."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from robust_ood.randomness import Key, derive_seed


def keyed(storage: Any, seed: int, *keys: Key) -> Any:
    """Return a context in which a data set's items draw numbers of these keys.

    Those are numbers of the global generators of torch, NumPy and Python, which are given back as
    they were. Other storages draw nothing, and the context does nothing.

    Args:
        storage: of an image set, or a part of one.
        seed, keys: what the draws are for.
    """
    if draws_when_read(storage):
        return seeded(derive_seed(seed, "items", *keys))
    return nullcontext()


def draws_when_read(storage: Any) -> bool:
    """Return whether the items of a storage may draw random numbers at each read."""
    while hasattr(storage, "images"):  # a part of a storage
        storage = storage.images
    return bool(getattr(storage, "draws", False))


@contextmanager
def seeded(value: int) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block."""
    python = random.getstate()
    numpy = np.random.get_state()  # the one that users' transforms draw from
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(value)
        random.seed(value)
        np.random.seed(value % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
