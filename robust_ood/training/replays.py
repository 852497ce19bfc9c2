"""Adversarial training "for free": images move by the gradients of training's own passes."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from robust_ood.attacks import TrainingBudget
from robust_ood.data import TrainingLoader
from robust_ood.errors import UserError
from robust_ood.regions import Generators
from robust_ood.rules import Steepest

_KEY = "perturbations"
_OWN = (
    *("training_step", "objective", "attacked", "inlier_goal", "outlier_goal"),
    *("loss", "inlier_loss", "outlier_loss"),
)
"""What a method must have of `Method` itself, so that its attacks raise their terms of the loss."""


class Replays(Callback):
    """Keeps the perturbations of a batch from step to step, and moves them by the loss's gradient.

    A batch is trained m times in a row. One forward and one backward pass at `x + delta` give both
    the gradient of the weights, which the optimiser takes as ever, and that of the images: `delta
    <- project(delta + step * steepest(gradient))`. Source: Shafahi et al. 2019, "Adversarial
    training for free!", Alg. 1, with `step` the radius.

    As there, the next batch begins with the perturbations that this one ended with, place by place:
    they were made for other images, and are a start at the border of the region. Two things differ:
    perturbations are clipped with their images to [0, 1], and the run's first batch, or one of
    another size, begins as `random_start` says (there, at the images).

    The loader repeats the batches (`TrainingLoader.replays`). An epoch has as many steps as ever,
    and m epochs go through the images once. Where m does not divide an epoch's steps, its last
    batch is trained less often.

    The loss is a mean of weighted terms, so only the sign or the direction of its gradient is used.
    Gradients that are not finite move nothing.
    """

    def __init__(self) -> None:
        self.count = 1
        self.perturbations: dict[str, Tensor] = {}
        """What each attack has come to, `(N, C, H, W)`, by its purpose."""
        self._trained: dict[str, tuple[TrainingBudget, Tensor, Tensor]] = {}

    def prepare(self, method: LightningModule, base: type[LightningModule]) -> None:
        """Set `count` to how often the method's attacks have each batch trained; 1 without replays.

        Args:
            method: whose attributes its attacks are.
            base: `Method`, whose attacks raise their own terms of its loss.

        Raises:
            UserError: a method or a run for which the gradient of the loss is not the attack's.
        """
        attacks = {}
        for field, value in vars(method).items():
            if is_replayed(value):
                attacks[field] = value
        self.count = 1
        for field, attack in attacks.items():
            _refuse_other_goals(f"{field}.replays", method, base)
            assert attack.replays is not None
            if self.count not in (1, attack.replays):
                raise UserError(
                    f"{field}.replays: {attack.replays} differs from the {self.count} of another "
                    "attack, and a batch is replayed equally often for all"
                )
            self.count = attack.replays
        if self.count > 1:
            _refuse_accumulation(method.trainer)

    def attacked(
        self, attack: TrainingBudget, images: Tensor, purpose: str, generators: Generators
    ) -> Tensor:
        """Return images as they are perturbed now; the coming backward pass will move them.

        Args:
            attack: how they are moved.
            images: `(N, C, H, W)` in [0, 1], the centres of the attack's region.
            purpose: what the attack is for, in words, by which its perturbations are kept.
            generators: of a random start, where there is nothing yet to begin with.
        """
        kept = self.perturbations.get(purpose)
        if kept is None or kept.shape != images.shape:
            start = attack.start(images, generators)
            kept = torch.zeros_like(images) if start is None else start - images
        moved = attack.region.project(images + kept.to(images), images)
        leaf = moved.detach().requires_grad_()
        self._trained[purpose] = (attack, images, leaf)
        return leaf

    def move(self) -> None:
        """Take a step along the gradient that the backward pass has left."""
        for purpose, (attack, images, leaf) in self._trained.items():
            if leaf.grad is None:  # the loss did not read them
                continue
            gradient = leaf.grad.nan_to_num(0.0, 0.0, 0.0)
            rule = attack.rule or Steepest()
            descend = rule.begin(attack.region, images, 1, attack.step_size)
            values = images.new_zeros(len(images))  # which no steepest step reads
            moved = descend(leaf.detach(), -gradient, values)
            self.perturbations[purpose] = moved - images
        self._trained = {}

    # What Lightning calls
    # ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Forget another run's perturbations, before a checkpoint brings this one's."""
        self.perturbations = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Have the loader repeat its batches, before a resumed run reads the rest of its epoch."""
        loader = trainer.train_dataloader
        if not isinstance(loader, TrainingLoader):
            raise UserError(
                "replays: batches are repeated by robust_ood.data.TrainingLoader, as OODData has "
                f"it, and this run reads a {type(loader).__name__}"
            )
        if len(loader) < self.count:
            raise UserError(
                f"replays: {self.count} are more than the {len(loader)} steps of an epoch, at "
                "whose end batches change; give fewer, or a smaller data.batch_size"
            )
        loader.replays = self.count

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Check again: Lightning may have a new loader, and a callback may accumulate gradients."""
        self.on_train_start(trainer, module)
        _refuse_accumulation(trainer)

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        """Take a step along the gradient of this pass."""
        self.move()

    def on_save_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the perturbations of all processes into the checkpoint, in the order of their ranks.

        They are gathered as objects: batches of which images cannot be read differ in size.
        """
        kept = {}
        for purpose, perturbations in self.perturbations.items():
            kept[purpose] = perturbations.cpu()
        gathered: list[Any] = [kept]
        if trainer.world_size > 1:
            gathered = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, kept)
        checkpoint[_KEY] = gathered

    def on_load_checkpoint(
        self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore this process's perturbations; a process without any starts from none."""
        gathered = checkpoint.get(_KEY, [])
        rank = trainer.global_rank
        self.perturbations = dict(gathered[rank]) if rank < len(gathered) else {}


def is_replayed(value: object) -> TypeGuard[TrainingBudget]:
    """Return whether a value is the budget of an attack that reuses training's gradients."""
    return isinstance(value, TrainingBudget) and value.replays is not None


def _refuse_other_goals(field: str, method: Any, base: type) -> None:
    name = type(method).__name__
    changed = []
    for part in _OWN:
        if getattr(type(method), part) is not getattr(base, part):
            changed.append(part)
    if changed:
        raise UserError(
            f"{field}: {name} has an attack or a loss of its own ({', '.join(changed)}), and the "
            "gradient of a loss serves attacks that raise their images' own terms of it, as in "
            "ADV, AOE, ALOE, RATIO, ACET and ATOM"
        )
    if method.attack_mode != "train":
        raise UserError(
            f"{field}: the gradient is that of the training pass, in which BatchNorm has the "
            "batch's statistics; set attack_mode: train"
        )


def _refuse_accumulation(trainer: Trainer) -> None:
    if trainer.accumulate_grad_batches != 1:
        raise UserError(
            f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} would add up the "
            "gradients of one batch's replays, between which the weights must change; expected 1"
        )
