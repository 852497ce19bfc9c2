"""Training of networks that model images: flows and auto-encoders. Labels are not read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from robust_ood.arguments import typed
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.models import AutoEncoder as AutoEncoderNetwork
from robust_ood.models import Glow
from robust_ood.training.method import Method
from robust_ood.training.optimization import Optimization


class _Generative(Method, ABC):
    """A method whose loss is a value of each image, the smaller the better."""

    logged: str
    """What the mean value is called."""

    def __init__(self, net: nn.Module, optimization: Optimization | None, **settings: Any) -> None:
        optimization = optimization or Optimization(optimizer={"name": "adam", "lr": 1e-3})
        super().__init__(net, optimization=optimization, **settings)
        self.means = nn.ModuleDict()
        for stage in ("val", "test"):
            self.means[f"{stage}/loss"] = MeanMetric()

    def objective(self, batch: Batch) -> Tensor:
        """Return the mean over the batch, and log it."""
        loss = self.values(self.seen(batch)).mean()
        self.log(f"train/{self.logged}", loss.detach(), prog_bar=True)
        return loss

    def seen(self, batch: Batch) -> Tensor:
        """Return the images that the loss sees."""
        return batch.images

    @abstractmethod
    def values(self, images: Tensor) -> Tensor:
        """Return the value `(N,)` of each image."""

    def _evaluate(self, batch: Batch, stage: str) -> None:
        mean = self.means[f"{stage}/loss"]
        assert isinstance(mean, MeanMetric)
        mean.update(self.values(self._laid_out(batch.images)))
        self.log(f"{stage}/loss", mean, prog_bar=True)


class Flow(_Generative):
    """Maximum likelihood of a flow: `min mean bits per dimension` of dequantised images.

    Source: Glow (Kingma and Dhariwal 2018). Pixels are brought to the flow's bits, and uniform
    noise of one step makes them continuous (Theis et al. 2016); the noise is keyed by the step. The
    first batch sets the flow's actnorm layers, so one process begins it; the state is in the
    checkpoint, and a resumed run may have several.

    Args:
        net: a `models.Glow`.
        optimization: Adam at a rate of 0.001 with a cosine by default.
        compile, seed: as in `Method`.
    """

    logged = "bits_per_dim"

    @typed
    def __init__(
        self,
        net: nn.Module,
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        if not isinstance(net, Glow):
            raise UserError(f"net: Flow trains a models.Glow, got a {type(net).__name__}")
        super().__init__(net, optimization, compile=compile, seed=seed)

    def seen(self, batch: Batch) -> Tensor:
        """Return images with noise within their quantisation, in [0, 1)."""
        glow = self._glow
        levels = 2**glow.bits
        quantised: Tensor = (batch.images * 255).round().div(256 / levels, rounding_mode="floor")
        draws = self.draws("dequantisation", batch)
        noise = torch.rand(batch.images.shape, generator=draws, device=draws.device)
        # Noise rounds to 1 once in 2^25 numbers, which the next level would have.
        continuous: Tensor = (quantised + noise) / levels
        return continuous

    def values(self, images: Tensor) -> Tensor:
        """Return bits per dimension `(N,)`."""
        bits: Tensor = self.net(images)
        return bits

    def on_fit_start(self) -> None:
        """Refuse several processes that would each initialise the flow by images of their own."""
        super().on_fit_start()
        if self.trainer.world_size > 1 and not self._glow.initialised:
            raise UserError(
                "trainer.devices: the first batch initialises a flow, and every process has "
                "another one; begin with --trainer.devices 1, and continue with several"
            )

    def _evaluate(self, batch: Batch, stage: str) -> None:
        if self._glow.initialised:  # not yet where validation is tried before training
            super()._evaluate(batch, stage)

    @property
    def _glow(self) -> Glow:
        assert isinstance(self.net, Glow)
        return self.net


class AutoEncoder(_Generative):
    """Reconstruction: `min mean squared error` between images and what the network gives back.

    Source: the encoder-attack paper, Sec. 2.4.

    Args:
        net: images `(N, C, H, W)` in [0, 1] to images, such as a `models.AutoEncoder`.
        input_noise: deviation of noise on the images that are encoded, >= 0 (a denoising
            auto-encoder); the error is to the image without it.
        optimization: Adam at a rate of 0.001 with a cosine by default.
        compile, seed: as in `Method`.
    """

    logged = "squared_error"

    @typed
    def __init__(
        self,
        net: nn.Module,
        input_noise: float = 0.0,
        optimization: Optimization | None = None,
        compile: bool = False,  # noqa: A002
        seed: int = 0,
    ) -> None:
        if not input_noise >= 0:
            raise UserError(f"input_noise: {input_noise} is not >= 0")
        if getattr(net, "classifies", True):
            raise UserError(
                f"net: AutoEncoder trains a network that gives back images, such as "
                f"models.{AutoEncoderNetwork.__name__}, got a {type(net).__name__}; a class of "
                "your own says so with `classifies = False`"
            )
        super().__init__(net, optimization, compile=compile, seed=seed)
        self.input_noise = input_noise

    def objective(self, batch: Batch) -> Tensor:
        """Return the mean squared error, and log it."""
        images = batch.images
        seen = images
        if self.input_noise:
            draws = self.draws("input noise", batch)
            noise = torch.randn(images.shape, generator=draws, device=draws.device)
            seen = images + self.input_noise * noise
        loss = self._errors(images, self._run(seen)).mean()
        self.log(f"train/{self.logged}", loss.detach(), prog_bar=True)
        return loss

    def values(self, images: Tensor) -> Tensor:
        """Return the mean squared error of each image, `(N,)`."""
        return self._errors(images, self.net(images))

    def _errors(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        if reconstructions.shape != images.shape:
            raise UserError(
                f"net: gives back {tuple(reconstructions.shape[1:])} of images "
                f"{tuple(images.shape[1:])}; expected the same shape"
            )
        return (reconstructions.float() - images.float()).square().flatten(1).mean(1)
