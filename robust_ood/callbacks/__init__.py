"""Callbacks and loggers for training runs."""

from robust_ood.callbacks.averaging import Averaging
from robust_ood.callbacks.checkpoints import Checkpoints, recent
from robust_ood.callbacks.dashboard import Dashboard
from robust_ood.callbacks.guards import Diverged, Guards
from robust_ood.callbacks.hard_outliers import HardOutliers
from robust_ood.callbacks.metrics_file import MetricsFile
from robust_ood.callbacks.progress import EpochLines
from robust_ood.callbacks.robust_validation import RobustValidation
from robust_ood.callbacks.signals import Stopped
from robust_ood.callbacks.stopwatch import Stopwatch

__all__ = [
    "Averaging",
    "Checkpoints",
    "Dashboard",
    "Diverged",
    "EpochLines",
    "Guards",
    "HardOutliers",
    "MetricsFile",
    "RobustValidation",
    "Stopped",
    "Stopwatch",
    "recent",
]
