"""A callback that logs a digest of every training batch, to compare the images of two runs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from robust_ood.data import Batch


class SampledImages(Callback):
    """Appends `epoch step digest` of each batch to `sampled-RANK.txt` in the run's folder."""

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, *_: Any
    ) -> None:
        digest = hashlib.sha256()
        for tensor in (batch.images, batch.labels, batch.outliers, batch.indices):
            digest.update(tensor.cpu().numpy().tobytes())
        path = Path(trainer.default_root_dir) / f"sampled-{trainer.global_rank}.txt"
        with path.open("a") as file:
            file.write(f"{batch.epoch} {batch.step} {digest.hexdigest()}\n")
