"""An exponential moving average of the weights, evaluated in place of them."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError

# Not Lightning's `WeightAveraging` around torch's `AveragedModel`: its first update copies instead
# of averaging, so that the numbers would change, and it overwrites the weights under training
# before `last.ckpt` is written, so that a longer run could not go on from there.

_NET = "net."


class Averaging(Callback):
    """Keeps an average of `module.net`'s weights, for validation and for readers of checkpoints.

    After each optimiser step `average <- d average + (1 - d) weights`, d = min(decay, (1 + n) / (10
    + n)) after n steps, so that short runs forget their start. BatchNorm's statistics are averaged
    likewise. A checkpoint holds the average as `state_dict`, which evaluation reads, and the
    weights under training as `raw_state_dict`.

    Args:
        decay: d, in [0, 1); None trains without an average.
    """

    @typed
    def __init__(self, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise UserError(f"averaging.decay: {decay} is not in [0, 1)")
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.steps = 0
        self._swapped = False

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Begin with the weights as they are, unless a checkpoint brought an average."""
        if self.decay is None:
            return
        for name, tensor in _net(module).state_dict().items():
            average = self.average.get(name, tensor.detach().clone())
            self.average[name] = average.to(tensor.device)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Take the weights of a finished optimiser step into the average."""
        if self.decay is None or trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages = []
        weights = []
        with torch.no_grad():
            for name, tensor in _net(module).state_dict().items():
                if tensor.is_floating_point():
                    averages.append(self.average[name])
                    weights.append(tensor)
                else:
                    self.average[name].copy_(tensor)
            # One call for all of them, because a large network has hundreds.
            torch._foreach_lerp_(averages, weights, share)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the average in the weights' place."""
        self._swap(module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Put the weights back."""
        self._swap(module)

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the average as the checkpoint's weights, and the weights beside it."""
        if self.average and not self._swapped:
            checkpoint["raw_state_dict"] = checkpoint["state_dict"]
            averages = {_NET + name: tensor for name, tensor in self.average.items()}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **averages}

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the weights under training, and the average where this run keeps one."""
        if "raw_state_dict" not in checkpoint:
            return
        if self.decay is not None:
            self.average = {}
            for name, tensor in checkpoint["state_dict"].items():
                if name.startswith(_NET):
                    self.average[name.removeprefix(_NET)] = tensor.clone()
        module.load_state_dict(checkpoint["raw_state_dict"])

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps are in the average."""
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.steps = state_dict["steps"]

    def _swap(self, module: LightningModule) -> None:
        if not self.average:
            return
        with torch.no_grad():
            for name, tensor in _net(module).state_dict().items():
                held = tensor.clone()
                tensor.copy_(self.average[name])
                self.average[name].copy_(held)
        self._swapped = not self._swapped


def _net(module: LightningModule) -> nn.Module:
    net = module.net
    assert isinstance(net, nn.Module)
    return net
