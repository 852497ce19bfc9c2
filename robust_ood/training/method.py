"""The one base of all training methods: attack the batch, run one forward pass, take a loss.

A method names its attacks and its loss (`attacked` and `loss`, or the whole `objective`);
everything else - optimiser, schedule, joint attack batch, random draws, logging - is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks import Budget, InLoopAttack, budget_of
from robust_ood.data import Batch
from robust_ood.deprecation import warn_renamed
from robust_ood.errors import UserError
from robust_ood.inputs import accepted, logits_of
from robust_ood.models import describe, load_weights
from robust_ood.models.jax_weights import is_jax_file, load_jax_weights
from robust_ood.modes import mode
from robust_ood.perturb import Objective
from robust_ood.randomness import generator, seed_torch
from robust_ood.training import goals
from robust_ood.training.freezing import frozen
from robust_ood.training.inspection import Finding, Watch
from robust_ood.training.optimization import Optimization
from robust_ood.training.optimized import OptimizedModule
from robust_ood.training.replays import Replays, is_replayed
from robust_ood.training.weight_perturbation import WeightPerturbation


class Method(OptimizedModule):
    """Training with clean or attacked inliers, and with clean, attacked or no auxiliary outliers.

    Minimises `mean CE(inliers) + outlier_weight * mean CE-to-uniform(outliers)`, the general form
    of ALOE Eq. 4: each of the two batches is attacked, within its region, so as to raise its own
    term, where an attack is given for it. Subclasses name the special cases, or bring an objective
    of their own.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`.
        inlier_attack: in-loop attack on inliers, or None for clean ones: one run to its last
            iterate, as adversarial training has it. A `Budget`, a `PGD` that sets nothing else, or
            either as a config writes it.
        outlier_attack: likewise on outliers.
        outlier_weight: lambda, >= 0; 0 trains without outliers.
        attack_mode: "eval" attacks with BatchNorm's running statistics; "train" attacks in train
            mode, as the ALOE code does, where PGD's passes also move the running statistics.
        optimization: optimiser and schedule; SGD with Nesterov momentum and a cosine per step by
            default.
        compile: run training passes through `torch.compile`. Parameters are frozen while an attack
            runs, because the compiled backward pass would otherwise differentiate them too.
        seed: seed of the attacks' random starts; the run's `seed_everything` where the command sets
            it.
        weight_perturbation: gamma >= 0 of AWP, which descends the loss at weights that raise it,
            `w + gamma ||w|| g / ||g||`; 5e-3 in Wu et al. 2020, 0 for none. It costs one more pass.
    """

    _run: Objective
    takes_mixed_labels = True
    """Whether the loss takes shares of classes `(N, K)` as labels: of mixup, or smoothed ones."""

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        inlier_attack: InLoopAttack | None = None,
        outlier_attack: InLoopAttack | None = None,
        outlier_weight: float = 0.0,
        attack_mode: Literal["eval", "train"] = "eval",
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002  # the name that users know
        seed: int = 0,
        weight_perturbation: float = 0.0,
    ) -> None:
        super().__init__(optimization)
        if not outlier_weight >= 0:
            raise UserError(
                f"outlier_weight: {outlier_weight} is negative or NaN; expected a number >= 0"
            )
        if attack_mode not in ("eval", "train"):
            raise UserError(f"attack_mode: {attack_mode!r} is neither 'eval' nor 'train'")
        self.net = net.to(memory_format=torch.channels_last)
        self.inlier_attack = budget_of("inlier_attack", inlier_attack)
        self.outlier_attack = budget_of("outlier_attack", outlier_attack)
        self.outlier_weight = outlier_weight
        self.attack_mode = attack_mode
        self.compiled = compile
        self.seed = seed
        self.weight_perturbation = WeightPerturbation(self.net, weight_perturbation)
        self.replays = Replays()
        # Past `nn.Module`'s registry: the weights are `net`'s, and a checkpoint must hold them
        # once.
        run = self.trained_outputs()
        self.__dict__["_run"] = torch.compile(run) if compile else run
        # Weighted by images over all processes; Lightning's own means weight each process alike,
        # whatever its share.
        self.means = nn.ModuleDict()
        for name in ("val/loss", "val/accuracy", "test/loss", "test/accuracy"):
            self.means[name] = MeanMetric()
        self.inspecting = False
        self.findings: dict[str, Finding] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)`."""
        logits: Tensor = logits_of(self.net(images))
        return logits

    def begin_from(self, weights: Path) -> None:
        """Load the weights of a file into the network, to fine-tune them.

        A head of another number of classes is left out: the network's own begins anew.
        """
        if is_jax_file(weights):
            load_jax_weights(self.net, weights, new_head=True)
            return
        load_weights(self.net, weights, new_head=True)

    # What a method may change
    # -----------------------------------------------------------------------------------------

    @property
    def needs_outliers(self) -> bool:
        """Whether the loss reads auxiliary outliers."""
        return self.outlier_weight > 0

    def trained_outputs(self) -> Objective:
        """Return what the losses read, a callable of images: the network, unless it has more.

        Attacks in the loop go through the same.
        """
        return self.net

    def objective(self, batch: Batch) -> Tensor:
        """Return the scalar to descend for a batch of images in [0, 1], and log its terms."""
        inliers, outliers = self.attacked(batch)
        inlier_logits, outlier_logits = self.logits(inliers, outliers)
        return self.loss(inlier_logits, outlier_logits, batch)

    def attacked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the batch's inliers and outliers as the loss sees them."""
        inlier_goal = self.inlier_goal(batch)
        outlier_goal = self.outlier_goal(batch)
        same = self.inlier_attack == self.outlier_attack and self.attack_mode == "eval"
        if self.inlier_attack is not None and same and len(batch.outliers):
            # In eval mode images do not influence one another, so one batch attacks both at once.
            size = len(batch.images)
            both = torch.cat([batch.images, batch.outliers])
            goal = goals.joint(inlier_goal, outlier_goal, size)
            joint = self.run_attack(self.inlier_attack, goal, both, batch, "attack both")
            return joint[:size], joint[size:]
        inliers = batch.images
        outliers = batch.outliers
        if self.inlier_attack is not None:
            inliers = self.run_attack(
                self.inlier_attack, inlier_goal, inliers, batch, "attack inliers"
            )
        if self.outlier_attack is not None and len(outliers):
            outliers = self.run_attack(
                self.outlier_attack, outlier_goal, outliers, batch, "attack outliers"
            )
        return inliers, outliers

    def inlier_goal(self, batch: Batch) -> Objective:
        """Return what the attack on inliers minimises, a function of their logits."""
        return lambda logits: -goals.cross_entropy(logits, batch.labels)

    def outlier_goal(self, batch: Batch) -> Objective:
        """Return what the attack on outliers minimises, a function of their logits."""
        return lambda logits: -self.outlier_values(logits)

    def outlier_values(self, logits: Tensor) -> Tensor:
        """Return the loss of each outlier `(N,)`: the larger, the harder it is.

        By default the cross-entropy to the uniform distribution.
        """
        return losses.cross_entropy_to_uniform(logits)

    def divergence(self) -> str | None:
        """Return what of the last step's numbers ran away, as a sentence; None while none did.

        Guards stop a run there, as they do where the loss is not finite.
        """
        return None

    @property
    def divergence_advice(self) -> str:
        """What a user may change where a run of this method diverges; empty for nothing special."""
        return ""

    def loss(self, inlier_logits: Tensor, outlier_logits: Tensor, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        inlier_loss = self.inlier_loss(inlier_logits, batch)
        if not len(outlier_logits):
            return inlier_loss
        return inlier_loss + self.outlier_weight * self.outlier_loss(outlier_logits)

    # What methods are made of
    # -----------------------------------------------------------------------------------------

    def run_attack(
        self, attack: Budget, goal: Objective, images: Tensor, batch: Batch, purpose: str
    ) -> Tensor:
        """Return images near the given ones that make a function of their logits small.

        Args:
            attack: the budget; one run, last iterate.
            goal: logits `(N, K)` to one value per image `(N,)`.
            images: `(N, C, H, W)`, the centres of the attack's region.
            batch: the batch they are from, which keys the random start with this process's rank.
            purpose: what the attack is for, in words: a key of the random start, and its name in
                warnings.
        """

        def attacked() -> Tensor:
            if is_replayed(attack):
                return self.replays.attacked(attack, images, purpose, self.draws(purpose, batch))
            return self._attacked(attack.at(self.progress), goal, images, batch, purpose)

        return self.weight_perturbation.once(purpose, attacked)

    def _attacked(
        self, attack: Budget, goal: Objective, images: Tensor, batch: Batch, purpose: str
    ) -> Tensor:
        start = attack.start(images, self.draws(purpose, batch))
        watch = Watch(attack.rule) if self.inspecting else None
        with self.searching():
            minimum = attack.descend(
                lambda x: goal(logits_of(self._run(x))), images, start, keep="last", rule=watch
            )
        if watch is not None:
            # In eval mode and without gradient: to be looked at must not change the run.
            with mode(self.net, training=False), torch.no_grad():
                run = self.trained_outputs()
                before = goal(logits_of(run(images if start is None else start)))
                after = goal(logits_of(run(minimum.images)))
            self.findings[purpose] = watch.finding(before, after)
        return minimum.images

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Have the network inside the block as searches over images differentiate it."""
        training = self.attack_mode == "train"
        freezing = frozen(self.net) if self.compiled else nullcontext()
        with mode(self.net, training=training), freezing:
            self.rest_frozen()
            yield

    def search(self, *arguments: Any, **settings: Any) -> Tensor:
        """Return the same as `run_attack`, its name from the next release on."""
        warn_renamed("Method.search", "Method.run_attack")
        return self.run_attack(*arguments, **settings)

    def logits(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of several batches of images, run as one.

        Apart, they would give BatchNorm several sets of statistics, which is known to hurt outlier
        exposure.
        """
        # Weights that autocast has cast without gradients would be reused here, and get none.
        torch.clear_autocast_cache()
        logits = logits_of(self._run(torch.cat(batches)))
        return torch.split(logits, [len(images) for images in batches])

    def predictions(self, images: Tensor) -> Tensor:
        """Return the classes `(N,)` that the network gives the images in eval mode."""

        def predicted() -> Tensor:
            with mode(self.net, training=False), torch.no_grad():
                classes: Tensor = logits_of(self.net(images)).argmax(1)
            return classes

        return self.weight_perturbation.once("predictions", predicted)

    def inlier_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of the labels; log it, and the accuracy."""
        loss = goals.cross_entropy(logits, batch.labels).mean()
        self.log("train/inlier_loss", loss.detach())
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        self.log(
            "train/accuracy",
            (logits.detach().argmax(1) == labels).float().mean(),
            prog_bar=True,
        )
        return loss

    def outlier_loss(self, logits: Tensor) -> Tensor:
        """Return the mean of `outlier_values`, and log it."""
        if not len(logits):
            raise UserError(
                f"needs_outliers: {type(self).__name__} takes a loss of outliers and its batch has "
                "none; set needs_outliers = True in the class"
            )
        loss = self.outlier_values(logits).mean()
        self.log("train/outlier_loss", loss.detach())
        return loss

    def draws(self, purpose: str, batch: Batch) -> torch.Generator:
        """Return the generator of a batch's draws: another for each purpose, step and process."""
        keys = (purpose, batch.epoch, batch.step, self.global_rank)
        return generator(self.seed, *keys, device=batch.images.device)

    # What Lightning calls
    # ---------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Any]:
        """Return what moves images by the gradient of a training pass, where an attack says so."""
        self.replays.prepare(self, Method)
        return [self.replays] if self.replays.count > 1 else []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        if not self.needs_outliers:
            batch = batch._replace(outliers=batch.outliers[:0])
        elif not len(batch.outliers):
            raise UserError(
                f"data.outliers: {type(self).__name__} trains with outliers, and the data has none"
            )
        if batch.labels.ndim == 2 and not self.takes_mixed_labels:
            raise UserError(
                f"data.augmentation: {type(self).__name__} needs one class for each image, and "
                "mixup, cutmix and label_smoothing give shares of several"
            )
        batch = batch._replace(
            images=self._laid_out(batch.images),
            outliers=self._laid_out(batch.outliers),
        )
        if self.weight_perturbation.size:
            loss = self.weight_perturbation.raised(
                lambda: self._seeded_objective(batch), self._mean
            )
        else:
            loss = self._seeded_objective(batch)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def on_after_backward(self) -> None:
        """Give perturbed weights back their values, before the optimiser steps."""
        self.weight_perturbation.restore()

    def _seeded_objective(self, batch: Batch) -> Tensor:
        # Dropout draws from torch's own generator: keyed by the step, its draws survive a
        # resumption too.
        keys = ("dropout", batch.epoch, batch.step + batch.replay, self.global_rank)
        seed_torch(self.seed, *keys, device=batch.images.device)
        return self.objective(batch)

    def _mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self._trainer is None:
            return values
        reduced: Tensor = self.trainer.strategy.reduce(values, reduce_op="mean")
        return reduced

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log clean loss and accuracy on in-distribution images."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log clean loss and accuracy on in-distribution images."""
        self._evaluate(batch, "test")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe method and network in the checkpoint.

        An evaluation can then build the network without a config.
        """
        super().on_save_checkpoint(checkpoint)
        checkpoint["method"] = type(self).__name__
        description = describe(self.net)
        if description is not None:
            checkpoint["network"] = description

    def _laid_out(self, images: Tensor) -> Tensor:
        """Return images in the fastest memory layout that the network takes."""
        return accepted(images.contiguous(memory_format=torch.channels_last), self.net)

    def _evaluate(self, batch: Batch, stage: str) -> None:
        logits = logits_of(self.net(self._laid_out(batch.images)))
        loss = losses.cross_entropy(logits, batch.labels)
        correct = (logits.argmax(1) == batch.labels).float()
        for name, values in ((f"{stage}/loss", loss), (f"{stage}/accuracy", correct)):
            mean = self.means[name]
            assert isinstance(mean, MeanMetric)
            mean.update(values)
            self.log(name, mean, prog_bar=name.endswith("accuracy"))
