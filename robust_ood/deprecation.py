"""Names that moved: they work for one more release, and say where they are now."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn, at the caller's caller, that a name is going away.

    Args:
        old: the name that was used, as a user writes it: `data.workers`.
        new: what to write instead.
        stacklevel: as in `warnings.warn`.
    """
    warnings.warn(
        f"{old} is deprecated and will be removed in the next release; use {new}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def moved(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's `__getattr__` under which names that moved are still found.

        __getattr__ = moved(__name__, {"Old": "robust_ood.place.New"})

    Args:
        module: the module that had the names.
        names: where each old name is now, as an import path.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807  # Python's own name for it
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].rpartition(".")
        warn_renamed(f"{module}.{name}", names[name])
        return getattr(import_module(home), new)

    return __getattr__
