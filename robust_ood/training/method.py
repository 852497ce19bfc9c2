"""The one base of all training methods: attack the batch, run one forward pass, take a loss.

A method names its attacks and its loss; everything else - optimiser, schedule, joint attack batch, logging - is here.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.attacks import PGD
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.models import describe
from robust_ood.modes import mode
from robust_ood.perturb import Objective, minimize
from robust_ood.randomness import derive_seed, generator
from robust_ood.training.optimization import SGD


class Method(LightningModule):
    """Training with clean or attacked inliers, and with clean, attacked or no auxiliary outliers.

    Minimises `mean CE(inliers) + outlier_weight * mean CE-to-uniform(outliers)`, the general form of ALOE Eq. 4: each of
    the two batches is attacked, within its region, so as to raise its own term, where an attack is given for it. Subclasses
    name the special cases.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        inlier_attack: in-loop attack on inliers, or None for clean ones. Only region, steps, step size, rule and random
            start count: one run, last iterate, as adversarial training has it.
        outlier_attack: likewise on outliers.
        outlier_weight: lambda, >= 0; 0 trains without outliers.
        attack_mode: "eval" attacks with BatchNorm's running statistics; "train" attacks in train mode, as the ALOE code
            does, where PGD's passes also move the running statistics.
        optimization: optimiser and schedule; SGD with Nesterov momentum and a cosine per step by default.
        seed: seed of the attacks' random starts; the run's `seed_everything` where the command sets it.
    """

    def __init__(
        self,
        net: nn.Module,
        inlier_attack: PGD | None = None,
        outlier_attack: PGD | None = None,
        outlier_weight: float = 0.0,
        attack_mode: Literal["eval", "train"] = "eval",
        optimization: SGD | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if outlier_weight < 0:
            raise UserError(f"outlier_weight: {outlier_weight} is negative")
        if attack_mode not in ("eval", "train"):
            raise UserError(f"attack_mode: {attack_mode!r} is neither 'eval' nor 'train'")
        self.net = net.to(memory_format=torch.channels_last)
        self.inlier_attack, self.outlier_attack = inlier_attack, outlier_attack
        self.outlier_weight, self.attack_mode = outlier_weight, attack_mode
        self.optimization = optimization or SGD()
        self.seed = seed

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)`."""
        logits: Tensor = self.net(images)
        return logits

    # What a method may change -----------------------------------------------------------------------------------------

    def attacked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the batch's inliers and outliers as the loss shall see them."""
        inlier_goal, outlier_goal = self.inlier_goal(batch), self.outlier_goal(batch)
        same = self.inlier_attack == self.outlier_attack and self.attack_mode == "eval"
        if self.inlier_attack is not None and same and len(batch.outliers):
            # In eval mode images do not influence one another, so one batch attacks both at once.
            size = len(batch.images)
            both = torch.cat([batch.images, batch.outliers])
            joint = self._attack(self.inlier_attack, _joint(inlier_goal, outlier_goal, size), both, batch, "both")
            return joint[:size], joint[size:]
        inliers, outliers = batch.images, batch.outliers
        if self.inlier_attack is not None:
            inliers = self._attack(self.inlier_attack, inlier_goal, inliers, batch, "inliers")
        if self.outlier_attack is not None and len(outliers):
            outliers = self._attack(self.outlier_attack, outlier_goal, outliers, batch, "outliers")
        return inliers, outliers

    def inlier_goal(self, batch: Batch) -> Objective:
        """Return what the attack on inliers minimises, a function of their logits."""
        return lambda logits: -losses.cross_entropy(logits, batch.labels)

    def outlier_goal(self, batch: Batch) -> Objective:
        """Return what the attack on outliers minimises, a function of their logits."""
        return lambda logits: -losses.cross_entropy_to_uniform(logits)

    def loss(self, inlier_logits: Tensor, outlier_logits: Tensor, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        inlier_loss = losses.cross_entropy(inlier_logits, batch.labels).mean()
        self.log("train/inlier_loss", inlier_loss)
        if not len(outlier_logits):
            return inlier_loss
        outlier_loss = losses.cross_entropy_to_uniform(outlier_logits).mean()
        self.log("train/outlier_loss", outlier_loss)
        return inlier_loss + self.outlier_weight * outlier_loss

    # What Lightning calls ---------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Attack, run one concatenated forward pass, and return the loss."""
        if not self.outlier_weight:
            batch = batch._replace(outliers=batch.outliers[:0])
        elif not len(batch.outliers):
            raise UserError(f"data.outliers: {type(self).__name__} trains with outliers, and the data has none")
        batch = batch._replace(
            images=batch.images.contiguous(memory_format=torch.channels_last),
            outliers=batch.outliers.contiguous(memory_format=torch.channels_last),
        )
        # Dropout draws from torch's own generator: keyed by the step, its draws survive a resumption too.
        torch.manual_seed(derive_seed(self.seed, "dropout", batch.epoch, batch.step, self.global_rank))
        inliers, outliers = self.attacked(batch)
        # One batch: two would give BatchNorm two sets of statistics, which is known to hurt outlier exposure.
        logits = self.net(torch.cat([inliers, outliers]))
        inlier_logits, outlier_logits = logits.split([len(inliers), len(outliers)])
        loss = self.loss(inlier_logits, outlier_logits, batch)
        accuracy = (inlier_logits.detach().argmax(1) == batch.labels).float().mean()
        self.log("train/loss", loss.detach(), prog_bar=True)
        self.log("train/accuracy", accuracy, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log clean loss and accuracy on in-distribution images."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log clean loss and accuracy on in-distribution images."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its per-step schedule."""
        steps = int(self.trainer.estimated_stepping_batches)
        # Counting made the loop set up its loader, before it has read from the checkpoint how far the epoch had got; it
        # would not do so again, and a resumed run would begin the epoch anew.
        self.trainer.fit_loop._combined_loader = None
        return self.optimization.configure(self.net, steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint say what made it: an evaluation can then build the network without a config."""
        checkpoint["method"] = type(self).__name__
        description = describe(self.net)
        if description is not None:
            checkpoint["network"] = description

    def _evaluate(self, batch: Batch, stage: str) -> None:
        logits = self.net(batch.images.contiguous(memory_format=torch.channels_last))
        loss = losses.cross_entropy(logits, batch.labels).mean()
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        size = len(batch.images)
        self.log(f"{stage}/loss", loss, batch_size=size, sync_dist=True)
        self.log(f"{stage}/accuracy", accuracy, batch_size=size, sync_dist=True, prog_bar=True)

    def _attack(self, attack: PGD, goal: Objective, images: Tensor, batch: Batch, which: str) -> Tensor:
        start = None
        if attack.random_start:
            keys = (f"attack {which}", batch.epoch, batch.step, self.global_rank)
            start = attack.region.sample(images, generator(self.seed, *keys, device=images.device))
        with mode(self.net, training=self.attack_mode == "train"):
            return minimize(
                lambda x: goal(self.net(x)),
                images,
                attack.region,
                steps=attack.steps,
                step_size=attack.step_size or 0.0,
                rule=attack.rule,
                start=start,
                keep="last",
            ).images


def _joint(first: Objective, second: Objective, size: int) -> Objective:
    """Return the function of joint logits whose first `size` values are `first`'s and the rest `second`'s."""
    return lambda logits: torch.cat([first(logits[:size]), second(logits[size:])])
