"""Guards against what goes wrong silently in adversarial training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric

from robust_ood import detectors
from robust_ood.arguments import typed
from robust_ood.attacks import PGD, Budget, fgsm
from robust_ood.attacks.objectives import Direction
from robust_ood.callbacks.robust_validation import separation
from robust_ood.data import Batch, OODData
from robust_ood.errors import UserError
from robust_ood.evaluation.scoring import Scorer
from robust_ood.losses import wide
from robust_ood.models import Discriminated, OutlierClass
from robust_ood.training import Method

_WORDS = {"accuracy": "accuracy", "auroc": "AUROC"}
_SCORES = {Discriminated: "discriminator", OutlierClass: "outlier-class"}
_SIDES: tuple[Direction, Direction] = (1, -1)


class Diverged(UserError):  # noqa: N818  # a state, like `Stopped`
    """Loss or weights are no longer finite."""


class Guards(Callback):
    """Watches for infinite losses, in-loop attacks that do nothing, and catastrophic overfitting.

    - A loss or a weight that is not finite, or numbers of the method that ran away
      (`Method.divergence`), stop the run before the next checkpoint is written: the last one is
      good.
    - An in-loop attack that improves its objective on less than half of a batch's images gives a
      warning. Under float16 so do input gradients of which more than 1 % are exactly zero. Both are
      checked every so many steps.
    - Training with a single-step attack can come to resist single steps only (catastrophic
      overfitting, Wong et al. 2020, Sec. 5.2). There each validation also logs `val/fgsm_accuracy`
      and `val/pgd_accuracy` (10 steps of a quarter of the radius) of attacked inliers; with
      `data.validation_ood` also `val/fgsm_auroc` and `val/pgd_auroc`, of MSP (of a discriminator or
      a class of outliers, where there is one), the sides attacked that training attacks
      by a single step. It warns when a PGD value falls below a quarter of its best, the FGSM value
      being twice it, and logs `val/catastrophic_overfitting`, 1 then and 0 otherwise.

    Args:
        attacks_every_n_steps: optimiser steps between two checks of the in-loop attacks, >= 1; None
            for no checks.
        limit: validation images of each set, drawn once, on which single-step training is checked;
            0 for none.
    """

    @typed
    def __init__(self, attacks_every_n_steps: int | None = 100, limit: int = 200) -> None:
        steps = attacks_every_n_steps
        if steps is not None and steps < 1:
            raise UserError(f"guards.attacks_every_n_steps: {steps} is not a number of steps >= 1")
        if limit < 0:
            raise UserError(f"guards.limit: {limit} is not a number of images >= 0")
        self.attacks_every_n_steps = attacks_every_n_steps
        self.limit = limit
        self.best = dict.fromkeys(_WORDS, 0.0)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Let the method inspect the coming step's attacks, if they are due."""
        if isinstance(module, Method) and self.attacks_every_n_steps is not None:
            module.inspecting = trainer.global_step % self.attacks_every_n_steps == 0
            module.findings = {}

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Stop at numbers that are not finite; warn about attacks that do nothing."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        advice = _advice(module, batch)
        if not _finite([loss]):
            raise _diverged(trainer, batch, "the loss is not finite", advice)
        if not _finite([*module.parameters(), *module.buffers()]):
            raise _diverged(trainer, batch, "a weight is not finite", advice)
        if isinstance(module, Method):
            exploded = module.divergence()
            if exploded is not None:
                raise _diverged(trainer, batch, exploded, advice)
        if isinstance(module, Method):
            self._warn_of_attacks(trainer, module)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Compare one step with ten where training takes a single one."""
        if trainer.sanity_checking or not isinstance(module, Method) or not self.limit:
            return
        data: OODData = trainer.datamodule  # type: ignore[attr-defined]  # no type in Lightning
        inside = _single_step(module, module.inlier_attack)
        outside = _single_step(module, module.outlier_attack)
        if not isinstance(data, OODData) or (inside is None and outside is None):
            return
        overfits = False
        if inside is not None:
            values = []
            for attack in _compared(inside):
                assert attack is not None
                values.append(self._accuracy(trainer, module, data, attack))
            overfits = self._overfits(module, "accuracy", *values)
        if data.validation_ood:
            values = []
            for on_inliers, on_outliers in zip(_compared(inside), _compared(outside), strict=True):
                values.append(self._auroc(trainer, module, data, on_inliers, on_outliers))
            overfits = self._overfits(module, "auroc", *values) or overfits
        module.log("val/catastrophic_overfitting", float(overfits), sync_dist=True)

    def _overfits(self, module: Method, name: str, one_step: float, many_steps: float) -> bool:
        """Log a value under one step and under ten; say and return whether the latter collapsed."""
        module.log(f"val/fgsm_{name}", one_step, sync_dist=True)
        module.log(f"val/pgd_{name}", many_steps, sync_dist=True)
        best = self.best[name]
        self.best[name] = max(best, many_steps)
        if not (many_steps < best / 4 and one_step > 2 * many_steps):
            return False
        rank_zero_warn(
            f"catastrophic overfitting: {_WORDS[name]} under 10 steps of PGD fell from "
            f"{best:.3f} to {many_steps:.3f} while that under FGSM is "
            f"{one_step:.3f}; train with more steps, a random start or a smaller radius, or "
            "go back to an earlier checkpoint"
        )
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the best values under PGD so far."""
        return {f"best_{name}": value for name, value in self.best.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name in self.best:
            self.best[name] = state_dict.get(f"best_{name}", 0.0)

    def _warn_of_attacks(self, trainer: Trainer, module: Method) -> None:
        precision = str(trainer.precision)
        half = "16" in precision and "bf16" not in precision
        for purpose, finding in module.findings.items():
            if finding.succeeded < 0.5:
                rank_zero_warn(
                    f"{purpose}: reached its aim on only {finding.succeeded:.0%} of the images at "
                    f"step {trainer.global_step}; its steps may be too large or too small, or "
                    "gradients may be masked"
                )
            if half and finding.zeros > 0.01:
                rank_zero_warn(
                    f"{purpose}: {finding.zeros:.1%} of the input gradients are exactly zero under "
                    f"float16 at step {trainer.global_step}; use precision bf16-mixed or 32-true"
                )
        module.inspecting = False

    def _accuracy(self, trainer: Trainer, module: Method, data: OODData, attack: PGD) -> float:
        loader = data.evaluation_loader(data.inliers("validation"), self.limit)
        mean = MeanMetric().to(module.device)
        right = Scorer(module.device).correct(module.net, loader, attack).scores[""]
        if len(right):
            mean.update(right.to(module.device))
        return float(mean.compute())

    def _auroc(
        self,
        trainer: Trainer,
        module: Method,
        data: OODData,
        inlier_attack: PGD | None,
        outlier_attack: PGD | None,
    ) -> float:
        """Return the AUROC of validation images against the first OOD set's, attacked as given."""
        name = "msp"
        for kind, score in _SCORES.items():
            if isinstance(module.net, kind):
                name = score
        detector = detectors.build(name, module.net)
        scorer = Scorer(module.device)
        sets = (data.inliers("validation"), data.validation_ood_sets()[0])
        scores = []
        for images, attack, side in zip(sets, (inlier_attack, outlier_attack), _SIDES, strict=True):
            loader = data.evaluation_loader(images, self.limit)
            scores.append(scorer.score({name: detector}, loader, attack, side).scores[name])
        inliers, outliers = scores
        auroc, _ = separation(inliers, outliers, module.device)
        return auroc


def _single_step(module: Method, attack: Budget | None) -> Budget | None:
    """Return an attack of training that takes a single step now, else None."""
    if attack is None or attack.at(module.progress).steps > 1:
        return None
    return attack


def _compared(attack: Budget | None) -> tuple[PGD | None, PGD | None]:
    """Return one step, and ten, within an attack's region; without one, no attacks."""
    if attack is None:
        return None, None
    strong = PGD(attack.region, steps=10, step_size=attack.region.radius / 4)
    return fgsm(attack.region), strong


def _advice(module: LightningModule, batch: Batch) -> str:
    """Return what a method advises, or what a user's own loss may lack on the very first batch."""
    if not isinstance(module, Method):
        return ""
    if module.divergence_advice:
        return f"; {module.divergence_advice}"
    if module.needs_outliers or batch.epoch or batch.step:
        return ""
    if type(module).__module__.startswith("robust_ood."):
        return ""
    return (
        f"; if the loss of {type(module).__name__} reads outliers, set needs_outliers = True in "
        "the class: without it their batch is empty, and a mean over it is NaN"
    )


def _diverged(trainer: Trainer, batch: Batch, number: str, advice: str = "") -> Diverged:
    checkpoint: Path | str = Path(trainer.default_root_dir) / "last.ckpt"
    if not Path(checkpoint).exists():
        checkpoint = "none"
    return Diverged(
        f"training: {number} after step {trainer.global_step} (batch of epoch "
        f"{batch.epoch}, step {batch.step}, rank {trainer.global_rank}); last good checkpoint: "
        f"{checkpoint}{advice}"
    )


def _finite(tensors: Iterable[Tensor]) -> bool:
    numbers = [wide(tensor.detach()) for tensor in tensors if tensor.is_floating_point()]
    # One call for all of them, because a large network has hundreds.
    return bool(torch.stack(torch._foreach_norm(numbers)).isfinite().all())
