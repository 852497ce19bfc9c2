"""What must hold of the parts of a run together, tested before anything is computed or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pytorch_lightning import Trainer
from torch import nn

from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import count_classes
from robust_ood.training import Method


def check_classes(
    net: nn.Module, data: OODData, part: Literal["train", "validation", "test"]
) -> None:
    """Refuse a network that cannot take the data's images or has another number of classes."""
    if not getattr(net, "classifies", True):
        return
    classes = count_classes(net, data.inliers(part).input_shape)
    if classes != data.num_classes:
        raise UserError(f"net: gives {classes} logits, but data.num_classes is {data.num_classes}")


def check_outliers(method: Method, data: OODData) -> None:
    """Refuse a method that trains with outliers where the data has none."""
    if not method.needs_outliers:
        return
    needs = f"{type(method).__name__} trains with outliers"
    if data.auxiliary is None:
        raise UserError(f"data.outliers: not given, and {needs}")
    if not data.outlier_batch_size:
        raise UserError(f"data.outlier_batch_size: is 0, and {needs}")


def check_trainer(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Refuse what Lightning would do otherwise, or not at all, on the machine at hand."""
    if settings["default_root_dir"] is not None:
        raise UserError("trainer.default_root_dir: the run folder is --output; leave it out")
    accumulated = settings["accumulate_grad_batches"]
    if accumulated < 1:
        raise UserError(f"trainer.accumulate_grad_batches: {accumulated} is not >= 1")
    precision = str(settings["precision"])
    if precision in ("16-true", "bf16-true"):
        raise UserError(
            f"trainer.precision: {precision} would round the weights themselves; take bf16-mixed"
        )
    if trainer.strategy.root_device.type != "cpu":
        return
    if settings["sync_batchnorm"] and trainer.world_size > 1:
        raise UserError(
            "trainer.sync_batchnorm: true needs GPUs; on the CPU each process has its own "
            "BatchNorm statistics"
        )
    if precision in ("16", "16-mixed"):
        raise UserError(
            f"trainer.precision: {precision} needs a GPU; the CPU has bf16-mixed, 32-true and "
            "64-true"
        )
