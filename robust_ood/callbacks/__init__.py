"""Callbacks for training runs."""

from robust_ood.callbacks.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
