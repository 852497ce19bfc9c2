"""A normalising flow of images, whose likelihood is exact."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.wide_resnet import check_settings


class Glow(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] to bits per dimension `(N,)`: a flow, and no classifier.

    Source: Kingma and Dhariwal 2018 (Glow): levels of actnorm, 1 x 1 convolution (LU) and coupling
    layers, by the library normflows (extra `flows`). Bits are those of images of `bits` bits:
    `-(log p(z) + log |det| - D log 2^bits) / (D log 2)`. A likelihood is computed in float32, also
    under autocast, and of the pixels as they are: only training adds noise.

    The first batch in train mode sets actnorm's shifts and scales. Weights that were never trained,
    nor loaded, are refused.

    Args:
        image_size: H = W, a multiple of 2 to the power of `levels`.
        channels: of the images.
        levels: how often the image is squeezed; half of the channels leave after each but the last.
        steps: steps of flow on each level.
        hidden: channels inside of the coupling layers' networks.
        affine: whether coupling layers also scale; additive ones, as in the encoder-attack paper's
            code, only shift.
        bits: of a pixel, in 1..8.
    """

    classifies = False
    feature_layers = ()

    @typed
    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        levels: int = 3,
        steps: int = 8,
        hidden: int = 128,
        affine: bool = True,
        bits: int = 8,
    ) -> None:
        super().__init__()
        check_settings(
            1, image_size=image_size, channels=channels, levels=levels, steps=steps, hidden=hidden
        )
        if image_size % 2**levels:
            raise UserError(
                f"image_size: {image_size} cannot be halved {levels} times; expected a multiple of "
                f"{2**levels}"
            )
        if not 1 <= bits <= 8:
            raise UserError(f"bits: {bits} is not in 1..8")
        self.settings = {
            "image_size": image_size, "channels": channels, "levels": levels, "steps": steps,
            "hidden": hidden, "affine": affine, "bits": bits,
        }  # fmt: skip
        self.bits = bits
        self.shape = (channels, image_size, image_size)
        self.flow = _multiscale(self.shape, levels, steps, hidden, affine=affine)
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.initialised: Tensor

    @property
    def dimensions(self) -> int:
        """D, the numbers of an image."""
        return math.prod(self.shape)

    def forward(self, images: Tensor) -> Tensor:
        """Return bits per dimension `(N,)`; the lower, the likelier.

        Raises: `UserError` for images of another shape, or a flow that has not been initialised.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._bits(self._checked(images))

    def encode(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the latents of each level, and `log |det|` of the whole map, `(N,)`."""
        latents, log_det = self.flow.inverse_and_log_det(self._checked(images) - 0.5)
        return latents, log_det

    def features(self, images: Tensor) -> Tensor:
        """Return the latents of all levels as vectors, `(N, D)`."""
        latents, _ = self.encode(images)
        return torch.cat([latent.flatten(1) for latent in latents], dim=1)

    def decode(self, latents: list[Tensor]) -> Tensor:
        """Return the images of latents, `(N, C, H, W)`, not clipped to [0, 1]."""
        images: Tensor = self.flow.forward_and_log_det(latents)[0]
        return images + 0.5

    def _bits(self, images: Tensor) -> Tensor:
        log_p: Tensor = self.flow.log_prob(images - 0.5, None)
        if self.training:
            self.initialised.fill_(True)
        return self.bits - log_p / (self.dimensions * math.log(2))

    def _checked(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.shape:
            raise UserError(
                f"images: {tuple(images.shape[1:])}, but this flow takes {self.shape} (channels, "
                "height, width)"
            )
        if not self.training and not self.initialised:
            raise UserError(
                "net: this flow has not been initialised; train it (training.Flow), or load its "
                "weights"
            )
        weight = next(self.parameters())
        return images.to(weight.dtype)


def _multiscale(
    shape: tuple[int, int, int], levels: int, steps: int, hidden: int, *, affine: bool
) -> Any:
    """Return the flow of normflows, the coarsest level first.

    Raises: `UserError` where that library is not installed.
    """
    try:
        import normflows as nf
    except ImportError as error:
        raise UserError(
            "net: Glow needs the package normflows; pip install 'robust-ood[flows]'"
        ) from error
    squeeze = _squeeze_of(nf)
    bases = []
    flows = []
    merges = []
    channels, side, _ = shape
    for level in range(levels):  # the finest first, which is the last that makes an image
        channels *= 4
        side //= 2
        blocks = []
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.lu is deprecated.*")
            for _ in range(steps):
                blocks.append(nf.flows.GlowBlock(channels, hidden, scale=affine))
        flows.append([*blocks, squeeze()])
        is_coarsest = level == levels - 1
        if not is_coarsest:
            merges.append(nf.flows.Merge())
            channels //= 2
        bases.append(nf.distributions.DiagGaussian((channels, side, side)))
    return nf.MultiscaleFlow(
        list(reversed(bases)), list(reversed(flows)), list(reversed(merges)), class_cond=False
    )


def _squeeze_of(nf: Any) -> type[nn.Module]:
    """Return normflows' squeeze, for any memory layout."""

    class Squeeze(nf.flows.Flow):  # type: ignore[misc]  # untyped
        """Four pixels to four channels."""

        def forward(self, maps: Tensor) -> tuple[Tensor, float]:
            """Return images of twice the side, `(N, C / 4, 2 H, 2 W)`."""
            return F.pixel_shuffle(maps, 2), 0.0

        def inverse(self, maps: Tensor) -> tuple[Tensor, float]:
            """Return maps of half the side, `(N, 4 C, H / 2, W / 2)`."""
            return F.pixel_unshuffle(maps, 2), 0.0

    return Squeeze
