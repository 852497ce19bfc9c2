"""Training of a classifier that is unsure of what a generator makes: ConfidenceGAN."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models import DCGANDiscriminator, DCGANGenerator
from robust_ood.modes import evaluating
from robust_ood.training.freezing import frozen
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization
from robust_ood.training.optimized import OptimizedPart

_CLASSIFIER = 0
_GENERATOR = 1
_DISCRIMINATOR = 2


class ConfidenceGAN(Method):
    """A classifier that is uniform on a generator's images, which the generator puts at its border.

    Three networks take a step each, one after the other. The discriminator descends `BCE(D(x), 1) +
    BCE(D(G(z)), 0)`; the generator `BCE(D(G(z)), 1) + beta mean KL(uniform || p(.|G(z)))`; the
    classifier `mean CE(x, y) + beta mean KL(uniform || p(.|G(z')))`, z' fresh.

    Source: Lee et al. 2018 (confidence-calibrated classifiers), Eq. 4 and Alg. 1; OOD-attack paper,
    App. G. The score is `msp`.

    Where the published code leaves things open: the classifier is in eval mode in the generator's
    step, which dropout would make noisy and whose images must not move running statistics (the code
    has dropout on). The generator is fixed in the classifier's step (the code computes its gradient
    and throws it away). The divergence is a mean over images, which the code's mean over images and
    classes, times classes, is too, up to a constant.

    A collapse of the generator shows nowhere but in the confidence on its images: see the logged
    `train/fake_confidence`. Lightning's manual optimisation takes the steps. Hence no gradient
    clipping, no gradient accumulation, no float16 (`bf16-mixed` works); several processes need
    `trainer.strategy: ddp_find_unused_parameters_true`, since each step's gradient is that of one
    network, and BatchNorm of generator and discriminator counts each process's images for itself.

    Args:
        net: classifier, images in [0, 1] to logits `(N, K)`; a `models.VGG` in the paper.
        beta: >= 0; 1 for SVHN and 0.1 for CIFAR-10 in the paper.
        image_size: H = W of the images: 8, 16, 32, ...
        latent_size: numbers in a latent vector.
        width: of generator and discriminator.
        generator: another network, latent vectors `(N, latent_size)` to images in [0, 1].
        discriminator: another network, images to log-odds `(N,)` of being real.
        gan_optimization: of generator and discriminator; by default the paper's, Adam with 2e-4 and
            betas 0.5 and 0.999, times 0.1 after 60 % of the run.
        optimization: of the classifier; by default Adam with 2e-4 and the same schedule.
        compile, seed: as in `Method`.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        beta: float = 1.0,
        image_size: int = 32,
        latent_size: int = 100,
        width: int = 64,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        gan_optimization: Optimization | None = None,
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        super().__init__(net, optimization=optimization or _adam(0.9), compile=compile, seed=seed)
        if not 0 <= beta < math.inf:
            raise UserError(f"beta: expected a finite number >= 0, got {beta}")
        if latent_size < 1:
            raise UserError(f"latent_size: {latent_size} is not a whole number >= 1")
        self.automatic_optimization = False
        self.beta = beta
        self.latent_size = latent_size
        self.gan_optimization = gan_optimization or _adam(0.5)
        self.generator = generator or DCGANGenerator(image_size, latent_size, width)
        self.discriminator = discriminator or DCGANDiscriminator(image_size, width)

    def optimized_parts(self) -> list[OptimizedPart]:
        """Return the classifier, the generator and the discriminator."""
        return [
            OptimizedPart(self.net, self.optimization),
            OptimizedPart(self.generator, self.gan_optimization),
            OptimizedPart(self.discriminator, self.gan_optimization),
        ]

    def configure_callbacks(self) -> list[Any]:
        """Refuse, by name, what manual optimisation cannot do; Lightning asks for these first."""
        trainer = self.trainer
        refused = {
            "trainer.gradient_clip_val": trainer.gradient_clip_val,
            "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches != 1,
            "trainer.precision": str(trainer.precision).startswith("16"),
        }
        for name, is_set in refused.items():
            if is_set:
                value = getattr(trainer, name.removeprefix("trainer."))
                raise UserError(
                    f"{name}: ConfidenceGAN optimises three networks in turn, which works without "
                    f"gradient clipping, accumulation and float16; got {value}"
                )
        if trainer.world_size > 1 and not _finds_unused(trainer.strategy):
            raise UserError(
                "trainer.strategy: ConfidenceGAN takes three backward passes a step, each of one "
                "network; over several processes set ddp_find_unused_parameters_true"
            )
        return []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take the three steps, and return the classifier's loss."""
        loss = super().training_step(batch, batch_idx)
        self._descend(_CLASSIFIER, loss)
        schedules = zip(self.optimized_parts(), self.schedules(), strict=True)
        for part, schedule in schedules:
            ends_epoch = self.trainer.is_last_batch
            is_plateau = isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau)
            if not is_plateau and (part.optimization.interval == "step" or ends_epoch):
                schedule.step()
        return loss.detach()

    def objective(self, batch: Batch) -> Tensor:
        """Take the discriminator's and the generator's step; return the classifier's loss."""
        latents = self._latents("latents of the generator", batch)
        self._descend(_DISCRIMINATOR, self.discriminator_loss(batch.images, latents))
        self._descend(_GENERATOR, self.generator_loss(latents))
        latents = self._latents("latents of the classifier", batch)
        return self.classifier_loss(batch, latents)

    def discriminator_loss(self, images: Tensor, latents: Tensor) -> Tensor:
        """Return the mean binary loss of images `(N, C, H, W)` and of fakes, and log it."""
        with torch.no_grad():
            fakes = self.fakes(latents)
        torch.clear_autocast_cache()  # of weights without gradient, and of those before a step
        loss = _binary(self.discriminator(images), 1) + _binary(self.discriminator(fakes), 0)
        self.log("train/discriminator_loss", loss.detach())
        return loss

    def generator_loss(self, latents: Tensor) -> Tensor:
        """Return what the generator descends on latent vectors `(N, latent_size)`, and log it."""
        torch.clear_autocast_cache()
        with frozen(self.net, self.discriminator), evaluating(self.net):
            fakes = self.fakes(latents)
            loss = _binary(self.discriminator(fakes), 1)
            if self.beta:
                loss = loss + self.beta * _to_uniform(logits_of(self._run(fakes))).mean()
        self.log("train/generator_loss", loss.detach())
        return loss

    def classifier_loss(self, batch: Batch, latents: Tensor) -> Tensor:
        """Return what the classifier descends, and log its terms and its confidence on fakes."""
        torch.clear_autocast_cache()
        with torch.no_grad():
            fakes = self.fakes(latents)
        logits, fake_logits = self.logits(batch.images, fakes)
        divergence = _to_uniform(fake_logits).mean()
        confidence = losses.wide(fake_logits.detach()).softmax(1).amax(1).mean()
        self.log("train/fake_divergence", divergence.detach())
        self.log("train/fake_confidence", confidence, prog_bar=True)
        return self.inlier_loss(logits, batch) + self.beta * divergence

    def fakes(self, latents: Tensor) -> Tensor:
        """Return the generator's images `(N, C, H, W)` of latent vectors `(N, latent_size)`."""
        return self._laid_out(losses.wide(self.generator(latents)))

    def _latents(self, purpose: str, batch: Batch) -> Tensor:
        draws = self.draws(purpose, batch)
        shape = (len(batch.images), self.latent_size)
        return torch.randn(shape, generator=draws, device=draws.device, dtype=batch.images.dtype)

    def _descend(self, place: int, loss: Tensor) -> None:
        """Take a step of one of the networks."""
        optimizers: Any = self.optimizers()
        optimizer = optimizers[place]
        # Lightning counts the steps of its wrappers; a training step shall count as one.
        if place != _CLASSIFIER:
            optimizer = optimizer.optimizer
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def _binary(log_odds: Tensor, target: float) -> Tensor:
    """Return the mean binary cross-entropy of log-odds `(N,)`, whatever extra dimension of 1."""
    log_odds = losses.wide(log_odds).flatten()
    return F.binary_cross_entropy_with_logits(log_odds, torch.full_like(log_odds, target))


def _to_uniform(logits: Tensor) -> Tensor:
    """Return `KL(uniform || softmax)` of logits `(N, K)`, `(N,)` >= 0."""
    return losses.cross_entropy_to_uniform(logits) - math.log(logits.shape[1])


def _finds_unused(strategy: Any) -> bool:
    """Return whether a strategy is DDP that looks which parameters a backward pass reached."""
    if not isinstance(strategy, DDPStrategy):
        return False
    return bool(strategy._ddp_kwargs.get("find_unused_parameters"))


def _adam(first_beta: float) -> Optimization:
    return Optimization(
        optimizer={"name": "adam", "lr": 2e-4, "betas": [first_beta, 0.999]},
        scheduler={"name": "milestones", "milestones": [0.6], "gamma": 0.1},
    )
