"""Train, attack and honestly evaluate adversarially robust out-of-distribution detectors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_ood import (
        attacks,
        bounds,
        callbacks,
        certify,
        data,
        deployment,
        detectors,
        losses,
        metrics,
        models,
        safe_spots,
        training,
    )
    from robust_ood.deployment import load_guard
    from robust_ood.evaluation import evaluate
    from robust_ood.perturb import minimize
    from robust_ood.regions import L1, L2, Linf, Unbounded

__all__ = [
    "L1",
    "L2",
    "Linf",
    "Unbounded",
    "attacks",
    "bounds",
    "callbacks",
    "certify",
    "data",
    "deployment",
    "detectors",
    "evaluate",
    "load_guard",
    "losses",
    "metrics",
    "minimize",
    "models",
    "safe_spots",
    "training",
]

_PLACES = {
    "L1": "robust_ood.regions",
    "L2": "robust_ood.regions",
    "Linf": "robust_ood.regions",
    "Unbounded": "robust_ood.regions",
    "evaluate": "robust_ood.evaluation",
    "load_guard": "robust_ood.deployment",
    "minimize": "robust_ood.perturb",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch and Lightning take seconds, which
    `--help` does without.
    """
    if name not in __all__:
        raise AttributeError(f"module 'robust_ood' has no attribute {name!r}")
    found = (
        getattr(import_module(_PLACES[name]), name)
        if name in _PLACES
        else import_module(f"robust_ood.{name}")
    )
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
