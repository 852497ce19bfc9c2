"""What TensorBoard shows beside the logged numbers: histograms, image strips, speed, settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from robust_ood.arguments import typed
from robust_ood.attacks import ScoreAttack, lower_score, raise_score
from robust_ood.callbacks.hyperparameters import METRICS, hyperparameters
from robust_ood.data import Batch, ImageSet, to_float
from robust_ood.detectors import Detector
from robust_ood.texts import printable

SHOWN = 4
"""Images in a strip."""


class Dashboard(Callback):
    """Logs the learning rate; for TensorBoard alone the speed and the resolved configuration.

    The settings that change what the run computes go to every logger when a run begins, and into
    TensorBoard's HPARAMS, so that runs can be compared by setting.
    Speed stays out of `metrics.csv`, which a resumed run must reproduce.
    """

    @typed
    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self._images = 0
        self._since = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the configuration."""
        self._images = 0
        self._since = time.monotonic()
        text = yaml.safe_dump(self.config, sort_keys=False)
        for board in _boards(trainer):
            board.add_text("config", f"```yaml\n{text}```", trainer.global_step)
        if trainer.ckpt_path is None:  # a resumed run has told them
            self._log_settings(trainer)

    def _log_settings(self, trainer: Trainer) -> None:
        settings = hyperparameters(self.config)
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings)
        for board in _boards(trainer):
            # Lightning's own way would also log numbers of its making under the metrics' names.
            for summary in hparams(settings, dict.fromkeys(METRICS, 0.0)):  # type: ignore[no-untyped-call]  # torch's
                board.file_writer.add_summary(summary)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Log the learning rate of the coming step."""
        module.log("train/learning_rate", trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Show the speed where numbers are logged."""
        self._images += (len(batch.images) + len(batch.outliers)) * trainer.world_size
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # a Lightning attribute without a type
        if every and trainer.global_step % every == 0:
            for board in _boards(trainer):
                speed = self._images / max(time.monotonic() - self._since, 1e-9)
                board.add_scalar("images_per_second", speed, trainer.global_step)
            self._images = 0
            self._since = time.monotonic()


def add_scores(
    trainer: Trainer, name: str, inliers: Mapping[str, Tensor], outliers: Mapping[str, Tensor]
) -> None:
    """Show histograms of this process's scores by attack label; `none` is clean."""
    for board in _boards(trainer):
        for side, scores_by_label in (("in", inliers), ("out", outliers)):
            for label, scores in scores_by_label.items():
                if len(scores):
                    tag = printable(f"scores/{name}/{side}/{label}")
                    board.add_histogram(tag, scores, trainer.global_step)


def add_strips(
    trainer: Trainer,
    name: str,
    detector: Detector,
    attack: ScoreAttack,
    inliers: ImageSet,
    outliers: ImageSet,
    device: torch.device,
) -> None:
    """Show a few images of each side, one a row: clean, perturbation, attacked."""
    sides = (("in", inliers, lower_score), ("out", outliers, raise_score))
    for board in _boards(trainer):
        for side, images, perturb in sides:
            # A picture is no reason to stop a run: images that cannot be read are left out.
            readable = images.take(torch.arange(min(4 * SHOWN, len(images)))).images[:SHOWN]
            if len(readable):
                clean = to_float(readable.to(device))
                picture = strip(clean, perturb(detector, clean, attack))
                board.add_image(printable(f"attack/{name}/{side}"), picture, trainer.global_step)


def strip(clean: Tensor, attacked: Tensor) -> Tensor:
    """Return `(C, N H, 3 W)` in [0, 1]: rows of clean image, perturbation and attacked image.

    The perturbation is scaled to full contrast; 0 is mid grey.
    """
    perturbation = attacked - clean
    size = perturbation.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    columns = torch.cat([clean, 0.5 + perturbation / (2 * size), attacked], dim=3)  # (N, C, H, 3 W)
    return torch.cat(list(columns), dim=1).clamp(0, 1).cpu()


def _boards(trainer: Trainer) -> list[Any]:
    """Return the TensorBoard writers; none in any process but the first."""
    boards = []
    for logger in trainer.loggers:
        if trainer.is_global_zero and isinstance(logger, TensorBoardLogger):
            boards.append(logger.experiment)
    return boards
