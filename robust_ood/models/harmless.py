"""What a checkpoint may hold besides tensors: plain values of Python and NumPy, by a fixed list.

Training scripts save their settings beside the weights, as a Namespace, paths or NumPy numbers.
Making one of these runs no code of the file's choosing. Everything else is refused by name.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import re
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

_PLAIN: tuple[Callable[..., Any], ...] = (
    argparse.Namespace,
    types.SimpleNamespace,
    collections.OrderedDict,
    datetime.date,
    datetime.datetime,
    datetime.timedelta,
    datetime.timezone,
    pathlib.PurePath,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    np.dtype,
    np.ndarray,
)
_BUILTINS = (bool, int, float, str, list, dict, tuple, set, frozenset, slice, range)


def harmless_values() -> AbstractContextManager[Any]:
    """Return a context in which `torch.load(weights_only=True)` makes the values of the list."""
    if torch.__version__ < "2.6":  # cannot be told other names of a class
        return nullcontext()
    named: list[Any] = list(_PLAIN)
    for kind in _BUILTINS:
        named += [(kind, f"builtins.{kind.__name__}"), (kind, f"__builtin__.{kind.__name__}")]
    # A path of another system cannot be made here; a pure one says the same.
    for module in ("pathlib", "pathlib._local"):
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath"):
            named.append((pathlib.PurePosixPath, f"{module}.{name}"))
        for name in ("WindowsPath", "PureWindowsPath"):
            named.append((pathlib.PureWindowsPath, f"{module}.{name}"))
    # NumPy 2 renamed its core.
    for module in ("numpy._core.multiarray", "numpy.core.multiarray"):
        named.append((np.float64(0).__reduce__()[0], f"{module}.scalar"))
        named.append((np.zeros(1).__reduce__()[0], f"{module}._reconstruct"))
    for code in "?bhilqpBHILQPefdgFDGSUVOMm":
        named.append(type(np.dtype(code)))
    context: AbstractContextManager[Any] = torch.serialization.safe_globals(named)
    return context


def refused_name(error: BaseException) -> str | None:
    """Return the class or function for which a file was refused; None where torch names none."""
    for pattern in (
        r"Unsupported global: GLOBAL (\S+)",
        r"unsupported GLOBAL (\S+)",
        r"but got <class '([^']+)'>",
        r"unrecognized function <(?:built-in )?(?:function|class) '?([^\s'>]+)",
    ):
        found = re.search(pattern, str(error))
        if found:
            return found[1]
    return None
