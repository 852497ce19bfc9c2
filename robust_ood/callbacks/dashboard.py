"""What TensorBoard shows beside the logged numbers: score histograms, image strips, speed, the
configuration.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from robust_ood.attacks import ScoreAttack, lower_score, raise_score
from robust_ood.data import Batch, ImageSet, to_float
from robust_ood.detectors import Detector

SHOWN = 4
"""Images in a strip."""


class Dashboard(Callback):
    """Logs the learning rate, and for TensorBoard alone the images per second and the run's
    resolved configuration.

    Speed stays out of `metrics.csv`, which a resumed run must reproduce.
    """

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self._images, self._since = 0, time.monotonic()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the configuration."""
        self._images, self._since = 0, time.monotonic()
        for board in _boards(trainer):
            board.add_text(
                "config",
                f"```yaml\n{yaml.safe_dump(self.config, sort_keys=False)}```",
                trainer.global_step,
            )

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
            self._images, self._since = 0, time.monotonic()


def add_scores(
    trainer: Trainer, name: str, inliers: Mapping[str, Tensor], outliers: Mapping[str, Tensor]
) -> None:
    """Show histograms of scores by attack label, clean (`none`) against attacked; this process's
    share of the images.
    """
    for board in _boards(trainer):
        for side, columns in (("in", inliers), ("out", outliers)):
            for label, scores in columns.items():
                if len(scores):
                    board.add_histogram(
                        f"scores/{name}/{side}/{label}", scores, trainer.global_step
                    )


def add_strips(
    trainer: Trainer,
    name: str,
    detector: Detector,
    attack: ScoreAttack,
    inliers: ImageSet,
    outliers: ImageSet,
    device: torch.device,
) -> None:
    """Show a few readable images of each side: clean, perturbation scaled up to full contrast,
    attacked; one a row.
    """
    for board in _boards(trainer):
        for side, images, perturb in (("in", inliers, lower_score), ("out", outliers, raise_score)):
            # A picture is no reason to stop a run: what cannot be read is left out.
            readable = images.take(torch.arange(min(4 * SHOWN, len(images)))).images[:SHOWN]
            if len(readable):
                clean = to_float(readable.to(device))
                picture = strip(clean, perturb(detector, clean, attack))
                board.add_image(f"attack/{name}/{side}", picture, trainer.global_step)


def strip(clean: Tensor, attacked: Tensor) -> Tensor:
    """Return `(C, n H, 3 W)` in [0, 1]: rows of clean image, perturbation (0 is mid grey), attacked
    image.
    """
    perturbation = attacked - clean
    size = perturbation.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, 1, 1, 1)
    columns = torch.cat([clean, 0.5 + perturbation / (2 * size), attacked], dim=3)  # (n, C, H, 3 W)
    return torch.cat(list(columns), dim=1).clamp(0, 1).cpu()


def _boards(trainer: Trainer) -> list[Any]:
    """Return the TensorBoard writers; none in any process but the first."""
    if not trainer.is_global_zero:
        return []
    return [
        logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)
    ]
