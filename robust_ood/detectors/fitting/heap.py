"""Memory that is free, and that the C library keeps.

A pass over images of 224 pixels makes and frees tensors of megabytes, of the same sizes in each
batch. glibc takes those of up to 32 MiB from its heap, which grows by a batch at a time although
what is in use does not (`docs/results/fitting_memory_resnet18.md`). Most likely this is its bug
14581: before 2.38, aligned memory needs a gap that is a little wider than the tensor, so the gap
that 50 images have left does not hold the next 50. The heap's free pages can be given back.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

FREE = 128 * 2**20
"""Bytes. Less is kept: a gigabyte costs a tenth of a second to give back and half a second to get
again. So networks of small images pay nothing, and those of large ones a few per cent."""
_FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class Account(ctypes.Structure):
    """glibc's `struct mallinfo2`, sums over its heaps: `fordblks` are free bytes."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _FIELDS)
    fordblks: int


class _Heap(NamedTuple):
    account: Callable[[], Account]
    trim: Callable[[int], int]


def give_back() -> None:
    """Give free pages back to the system where more than `FREE` bytes are kept.

    It changes nothing but the process's memory. It does nothing without glibc 2.33 or newer: on
    other systems, and where there is little to gain.
    """
    heap = _heap()
    if heap is not None and heap.account().fordblks > FREE:
        heap.trim(0)


@cache
def _heap() -> _Heap | None:
    """Return glibc's two functions, None where the process has no such library."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return None  # musl, or an older glibc
    library.mallinfo2.restype = Account
    library.malloc_trim.argtypes = (ctypes.c_size_t,)
    return _Heap(library.mallinfo2, library.malloc_trim)
