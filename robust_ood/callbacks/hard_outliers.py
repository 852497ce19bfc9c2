"""Outlier mining: each epoch trains with the hard outliers of a pool."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.data.loaders import TrainingLoader, to_float
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.modes import mode
from robust_ood.randomness import generator
from robust_ood.training import Method

_BATCH = 500  # images scored at a time


class HardOutliers(Callback):
    """Chooses, before each epoch, the auxiliary outliers that the method's loss finds hardest.

    A pool of outliers is drawn (of several sources, in the shares of their weights), scored by the
    network in eval mode without attack, and sorted by `Method.outlier_values`, the largest first. A
    share of the hardest is skipped. The next ones, as many as an epoch takes, are its outliers,
    shuffled. Source: Chen et al. 2021 (ATOM), Algorithm 1, there with the outlier class's
    probability, smallest first, which is the same order. OE, ACET, ALOE and others mine by their
    own losses.

    Each process scores its share of the pool, and all choose alike. What an epoch chose is in its
    checkpoints, so a resumed run goes on with the same outliers.

    Args:
        pool: outliers scored before each epoch, as a multiple of those that an epoch takes, >= 1; 4
            in the paper. None trains without mining.
        skip: share of the pool that is too hard to use, in [0, 1); 0.125 in the paper for CIFAR-10.
    """

    @typed
    def __init__(self, pool: float | None = None, skip: float = 0.125) -> None:
        if pool is not None and not pool >= 1:
            raise UserError(f"hard_outliers.pool: {pool} is not >= 1")
        if not 0 <= skip < 1:
            raise UserError(f"hard_outliers.skip: {skip} is not in [0, 1)")
        if pool is not None and pool * (1 - skip) < 1:
            raise UserError(
                f"hard_outliers.skip: {skip} of a pool of {pool} times an epoch's outliers leaves "
                "fewer than an epoch takes; expected pool * (1 - skip) >= 1"
            )
        self.pool = pool
        self.skip = skip
        self.epoch = -1
        self.chosen: Tensor | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Have the loader ask for the outliers of each epoch."""
        if self.pool is None:
            return
        assert isinstance(module, Method)
        loader = trainer.train_dataloader
        assert isinstance(loader, TrainingLoader)
        if loader.outliers is None or not module.needs_outliers:
            raise UserError(
                f"hard_outliers.pool: {type(module).__name__} trains without outliers here, so "
                "there is nothing to mine"
            )
        loader.choose_outliers = partial(self._choose, trainer, module, loader)

    def state_dict(self) -> dict[str, Any]:
        """Return the outliers of the epoch, for checkpoints within it."""
        return {"epoch": self.epoch, "chosen": self.chosen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.epoch = state_dict["epoch"]
        self.chosen = state_dict["chosen"]

    def _choose(
        self, trainer: Trainer, module: Method, loader: TrainingLoader, epoch: int
    ) -> Tensor:
        """Return the indices of an epoch's outliers: a checkpoint's, where it was within it."""
        if self.epoch != epoch or self.chosen is None:
            self.chosen = self._mined(trainer, module, loader, epoch)
            self.epoch = epoch
        return self.chosen

    def _mined(
        self, trainer: Trainer, module: Method, loader: TrainingLoader, epoch: int
    ) -> Tensor:
        assert loader.stream is not None
        assert self.pool is not None
        taken = loader.different_batches * loader.outlier_batch_size * loader.world
        draws = generator(module.seed, "outlier pool", epoch)
        pool = loader.stream.pool(math.ceil(self.pool * taken), draws)
        skipped = math.floor(self.skip * len(pool))
        if len(pool) - skipped < loader.outlier_batch_size * loader.world:
            raise UserError(
                f"hard_outliers.pool: {len(pool)} outliers, of which {skipped} are skipped, are "
                f"fewer than a batch of {loader.outlier_batch_size * loader.world}"
            )
        values = self._values(trainer, module, loader, pool)
        hardest = pool[values.argsort(descending=True, stable=True)]
        chosen = hardest[skipped : skipped + taken]
        shuffle = torch.randperm(len(chosen), generator=draws)
        return chosen[shuffle]

    def _values(
        self, trainer: Trainer, module: Method, loader: TrainingLoader, pool: Tensor
    ) -> Tensor:
        """Return the loss of each outlier of the pool `(P,)`, each process having taken a share."""
        assert loader.outliers is not None
        run = module.trained_outputs()
        share = torch.arange(len(pool))[loader.rank :: loader.world]
        values = torch.zeros(len(pool), dtype=torch.float64)
        values[share] = -torch.inf  # what cannot be read is chosen last
        with mode(module.net, training=False), torch.no_grad():
            for places in torch.split(share, _BATCH):
                read = loader.outliers.take(pool[places])
                loader.outliers.note_unreadable(read.unreadable)
                images = to_float(read.images).to(module.device)
                readable = places[torch.isin(pool[places], read.indices)]
                values[readable] = module.outlier_values(logits_of(run(images))).double().cpu()
        summed: Tensor = trainer.strategy.reduce(values.to(module.device), reduce_op="sum").cpu()
        return summed
