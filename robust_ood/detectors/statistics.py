"""Moved to `robust_ood.detectors.fitting.statistics`; this name goes with the next release."""

from robust_ood.deprecation import moved

_NEW = "robust_ood.detectors.fitting.statistics"
_NAMES = (
    "Average",
    "ClassExtremes",
    "ClassMeans",
    "ClassMoments",
    "Sample",
    "Statistic",
    "double",
    "require_all",
)

__getattr__ = moved(__name__, {name: f"{_NEW}.{name}" for name in _NAMES})
