"""Callbacks for training runs."""

from robust_ood.callbacks.checkpoints import Checkpoints, recent
from robust_ood.callbacks.metrics_file import MetricsFile
from robust_ood.callbacks.signals import Stopped

__all__ = ["Checkpoints", "MetricsFile", "Stopped", "recent"]
