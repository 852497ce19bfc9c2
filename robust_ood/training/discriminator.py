"""Adversarial training of a discriminator on the features of a frozen network: ATD."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.attacks import InLoopAttack
from robust_ood.data import Batch, OODData, to_float
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models import Discriminated, load_weights
from robust_ood.modes import mode
from robust_ood.perturb import Objective
from robust_ood.regions import Generators
from robust_ood.training.drawn import drawn
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization

_BATCH = 250  # images whose features are computed at a time
_JITTER = 1e-3
"""Added to the features' covariance, as a share of its mean variance, which may be singular."""


class ATD(Method):
    """A discriminator of attacked inliers, attacked outliers and fake features of outliers.

    `min mean max BCE(D(f(x + delta)), 1) + outlier_weight mean max BCE(D(f(x_out + delta)), 0) +
    fake_weight mean BCE(D(h), 0)`, f the features of a robust network that stays as it is, with its
    running statistics; attacks go through f to the image. Trained is the discriminator D alone.

    Source: ATD (Azizmalayeri et al. 2022, "Your out-of-distribution detection method is not
    robust!"), Eq. 5 to 7. Its fake features are those of a generator, which in the published code
    never learns. Here they are unlikely features h of classes, as in AROS (Mirzaei et al. 2025): of
    `candidates` draws of the Gaussian of an inlier's class, the farthest. The Gaussians have the
    classes' means and one covariance, estimated before training from clean images. Scores are
    logits: a sigmoid would tie, and mask gradients, where it is close to 0 or 1.

    The detector `discriminator` scores with such a network.

    Args:
        net: a `robust_ood.models.Discriminated`; `init_from` gives the weights of its classifier.
        inlier_attack: in-loop attack on inliers; 10 steps within 8/255 in the paper.
        outlier_attack: likewise on outliers; as on inliers by default.
        outlier_weight: of real outliers, >= 0; 0.5 in the paper. 0 trains without.
        fake_weight: of fake features, >= 0; 0.5 in the paper.
        candidates: draws of which a fake feature is the farthest, >= 1; 1 is any draw.
        statistics_images: inliers that the Gaussians are estimated from, at most; at least twice
            the number of classes.
        optimization, seed, weight_perturbation: as in `Method`; `trainable: all` means all of the
            discriminator.

    Raises:
        UserError: a network without a discriminator.
    """

    takes_mixed_labels = False
    feature_means: Tensor
    feature_factor: Tensor
    fitted: Tensor

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        net: nn.Module,
        inlier_attack: InLoopAttack,
        outlier_attack: InLoopAttack | None = None,
        outlier_weight: float = 0.5,
        fake_weight: float = 0.5,
        candidates: int = 20,
        statistics_images: int = 10_000,
        optimization: Optimization | None = None,
        seed: int = 0,
        weight_perturbation: float = 0.0,
    ) -> None:
        if not isinstance(net, Discriminated):
            raise UserError(
                f"net: ATD trains a discriminator on features, and {type(net).__name__} has none; "
                "give robust_ood.models.Discriminated, whose own net it is"
            )
        optimization = optimization or Optimization()
        if optimization.trainable in ("all", "head"):
            optimization = replace(optimization, trainable=["discriminator"])
        super().__init__(
            net,
            inlier_attack,
            outlier_attack,
            outlier_weight,
            optimization=optimization,
            seed=seed,
            weight_perturbation=weight_perturbation,
        )
        if outlier_attack is None:
            self.outlier_attack = self.inlier_attack
        if not fake_weight >= 0:
            raise UserError(f"fake_weight: {fake_weight} is negative or NaN; expected >= 0")
        if candidates < 1:
            raise UserError(f"candidates: {candidates} is not a number of draws >= 1")
        classes, width = net.head.weight.shape
        if statistics_images < 2 * classes:
            raise UserError(
                f"statistics_images: {statistics_images} is fewer than two for each of the "
                f"{classes} classes"
            )
        self.fake_weight = fake_weight
        self.candidates = candidates
        self.statistics_images = statistics_images
        like = net.head.weight
        self.register_buffer("feature_means", like.new_zeros(classes, width))
        self.register_buffer("feature_factor", like.new_zeros(width, width))
        self.register_buffer("fitted", torch.tensor(False))
        self._ready = False

    @property
    def discriminated(self) -> Discriminated:
        """The network."""
        assert isinstance(self.net, Discriminated)
        return self.net

    def begin_from(self, weights: Path) -> None:
        """Load the weights of a file into the classifier, its head included."""
        load_weights(self.discriminated.net, weights)

    def trained_outputs(self) -> Objective:
        """Return the discriminator's logits `(N, 1)`, a callable of images."""
        net = self.discriminated
        return lambda images: net.discriminator_logits(images)[:, None]

    def inlier_goal(self, batch: Batch) -> Objective:
        """Return what the attack on inliers minimises, a function of logits `(N, 1)`."""
        return lambda logits: -_loss(-logits)

    def outlier_values(self, logits: Tensor) -> Tensor:
        """Return the binary cross-entropy `(N,)` of outliers' logits `(N, 1)`."""
        return _loss(logits)

    def loss(self, inlier_logits: Tensor, outlier_logits: Tensor, batch: Batch) -> Tensor:
        """Return the scalar to descend, and log its terms."""
        loss = _loss(-inlier_logits).mean()
        self.log("train/inlier_loss", loss.detach())
        if len(outlier_logits):
            loss = loss + self.outlier_weight * self.outlier_loss(outlier_logits)
        if self.fake_weight:
            fakes = self.fakes(batch.labels, self.draws("fake features", batch))
            fake_loss = _loss(self.discriminated.of_features(fakes)[:, None]).mean()
            self.log("train/fake_loss", fake_loss.detach())
            loss = loss + self.fake_weight * fake_loss
        return loss

    def fakes(self, labels: Tensor, generators: Generators) -> Tensor:
        """Return an unlikely feature `(N, D)` of each class `(N,)`."""
        if not self._ready:
            self._ready = bool(self.fitted)  # once: each step would wait for the device
        if not self._ready:
            raise UserError("fake_weight: call fit_features(images, labels) before training")
        means = self.feature_means[labels]  # (N, D)
        draws = _normal((self.candidates, means.shape[1]), generators, means)
        farthest = draws.square().sum(2).argmax(1)  # (N,)
        chosen = draws[torch.arange(len(labels), device=labels.device), farthest]
        return means + chosen @ self.feature_factor.T

    # Where the Gaussians come from
    # ---------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Estimate the Gaussians from training images, unless a checkpoint brought them."""
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        if bool(self.fitted) or not isinstance(data, OODData):
            return
        inliers = data.inliers("train")
        read = drawn(inliers, self.statistics_images, self.seed, "inliers of features")
        self._require_gradients(to_float(read.images[:2]))
        self.fit_features(to_float(read.images), read.labels)

    def fit_features(self, images: Tensor, labels: Tensor) -> None:
        """Estimate the classes' Gaussians from images `(N, C, H, W)` in [0, 1], labels `(N,)`.

        Raises:
            UserError: a class without images.
        """
        features = torch.cat(list(self._features(images))).double()  # (N, D)
        labels = labels.to(features.device)
        means = torch.zeros_like(self.feature_means, dtype=torch.float64)
        for label in range(len(means)):
            chosen = features[labels == label]
            if not len(chosen):
                raise UserError(
                    f"statistics_images: class {label} has none among the {len(images)} images "
                    "that Gaussians are estimated from; give more"
                )
            means[label] = chosen.mean(0)
        centred = features - means[labels]
        covariance = centred.T @ centred / len(centred)
        jitter = _JITTER * covariance.diagonal().mean().clamp_min(1e-12)
        covariance = covariance + jitter * torch.eye(len(covariance)).to(covariance)
        self.feature_means.copy_(means)
        self.feature_factor.copy_(torch.linalg.cholesky(covariance))
        self.fitted.fill_(True)
        self._warn_of_guessing(features, labels)

    def _features(self, images: Tensor) -> Iterator[Tensor]:
        with mode(self.net, training=False), torch.no_grad():
            for part in torch.split(images, _BATCH):
                yield self.discriminated.features(self._prepared(part))

    def _prepared(self, images: Tensor) -> Tensor:
        weight = self.discriminated.head.weight
        return self._laid_out(images.to(weight.device, weight.dtype))

    def _require_gradients(self, images: Tensor) -> None:
        """Refuse a network whose features do not let a gradient through to the image."""
        leaf = self._prepared(images).requires_grad_()
        gradient = None
        with mode(self.net, training=False):
            features = self.discriminated.features(leaf)
            if features.requires_grad:
                (gradient,) = torch.autograd.grad(features.sum(), leaf, allow_unused=True)
        if gradient is None:
            name = type(self.discriminated.net).__name__
            raise UserError(
                f"net: the features of {name} carry no gradient to the image, so they cannot be "
                "attacked; remove no_grad or detach from its forward pass"
            )

    def _warn_of_guessing(self, features: Tensor, labels: Tensor) -> None:
        head = self.discriminated.head
        logits = logits_of(head(features.to(head.weight.dtype)))
        accuracy = float((logits.argmax(1) == labels).double().mean())
        if accuracy < 2 / len(self.feature_means):
            rank_zero_warn(
                f"net: the network below the discriminator classifies {accuracy:.0%} of the "
                "training images rightly, and it stays as it is; give the weights of a robust one "
                "with init_from"
            )


def _loss(logits: Tensor) -> Tensor:
    """Return `BCE(sigmoid(z), 0)`, `(N,)`, of logits `(N, 1)`."""
    return F.softplus(losses.wide(logits[:, 0]))


def _normal(shape: tuple[int, int], generators: Generators, like: Tensor) -> Tensor:
    """Draw `(N, *shape)` for N features, from one generator or from one for each of them."""
    if isinstance(generators, torch.Generator):
        whole = (len(like), *shape)
        noise = torch.randn(whole, generator=generators, device=generators.device)
        return noise.to(like)
    rows = []
    for source in generators:
        rows.append(torch.randn(shape, generator=source, device=source.device))
    return torch.stack(rows).to(like)
