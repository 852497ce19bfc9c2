"""A callback that notes a digest of every training batch, so that two runs' sampled images can be
compared.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from robust_ood.data import Batch


class SampledImages(Callback):
    """Appends `epoch step digest` to `sampled-RANK.txt` in the run's folder, for the batch as the
    method gets it.
    """

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, *_: Any
    ) -> None:
        digest = hashlib.sha256()
        for tensor in (batch.images, batch.labels, batch.outliers, batch.indices):
            digest.update(tensor.cpu().numpy().tobytes())
        path = Path(trainer.default_root_dir) / f"sampled-{trainer.global_rank}.txt"
        with path.open("a") as file:
            file.write(f"{batch.epoch} {batch.step} {digest.hexdigest()}\n")
