"""Callbacks and loggers for training runs."""

from robust_ood.callbacks.checkpoints import Checkpoints
from robust_ood.callbacks.metrics_file import MetricsFile

__all__ = ["Checkpoints", "MetricsFile"]
