"""Stateless randomness: every draw is a pure function of what it is for.

Nothing in the package keeps a random state from one step to the next. A run that is resumed
anywhere therefore draws what the run never stopped would have drawn, and an evaluation does not
depend on how its images were batched.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable

import torch

from robust_ood.arguments import typed
from robust_ood.errors import UserError

Key = int | str


@typed
def derive_seed(seed: int, *keys: Key) -> int:
    """Return a 63-bit seed, a pure function of `seed` and `keys`; other keys: an unrelated seed.

    Keys are hashed with their type and separated, so `("a", 1)`, `("a1",)` and `("a", "1")` differ.
    The hash is BLAKE2, which is the same on every machine and Python version (Python's own `hash`
    is not).
    """
    text = repr((int(seed), *keys)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@typed
def generator(seed: int, *keys: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh random generator for one purpose.

    Args:
        seed: the run's or the evaluation's seed.
        keys: what the draw is for: a purpose in words, then epoch, step, rank or sample index.
        device: where the draws are made. Devices of different kinds draw different numbers.
    """
    try:
        place = torch.Generator(device=device)
    except RuntimeError as error:  # no device of this name, or none on this machine
        raise UserError(f"device: {device!r} is no device of this machine") from error
    return place.manual_seed(derive_seed(seed, *keys))


@typed
def seed_torch(seed: int, *keys: Key, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of the device, which dropout draws from.

    As `torch.manual_seed`, which also records a stack trace for each kind of device that the
    machine does not have: that takes a millisecond.
    """
    value = derive_seed(seed, *keys)
    torch.default_generator.manual_seed(value)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(value)


@typed
def generators(seed: int, *keys: Key, indices: Iterable[int]) -> list[torch.Generator]:
    """Return one CPU generator per sample index: draws then depend on no batch or device."""
    sources = []
    for index in indices:
        try:
            key = operator.index(index)
        except TypeError as error:
            raise UserError(f"indices: expected whole numbers, got {index!r:.40}") from error
        sources.append(generator(seed, *keys, key))
    return sources
