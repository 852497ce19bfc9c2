"""A convolutional auto-encoder of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.wide_resnet import check_settings


class AutoEncoder(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] to their reconstructions, likewise; no classifier.

    Convolutions that halve the side, a linear code, and the way back. The last layer is a sigmoid.

    Args:
        image_size: H = W, a multiple of 2 to the power of the number of widths.
        widths: output channels of each convolution of the encoder; the decoder mirrors them.
        latent_size: numbers of the code; fewer than an image has.
        channels: of the images.
    """

    classifies = False
    feature_layers = ("encoder",)

    @typed
    def __init__(
        self,
        image_size: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        latent_size: int = 64,
        channels: int = 3,
    ) -> None:
        super().__init__()
        check_settings(1, image_size=image_size, latent_size=latent_size, channels=channels)
        if not widths or min(widths) < 1:
            raise UserError(f"widths: expected numbers >= 1, got {list(widths)}")
        side, rest = divmod(image_size, 2 ** len(widths))
        if rest or not side:
            raise UserError(
                f"image_size: {image_size} cannot be halved {len(widths)} times; expected a "
                f"multiple of {2 ** len(widths)}"
            )
        numbers = channels * image_size**2
        if latent_size >= numbers:
            raise UserError(
                f"latent_size: {latent_size} is not less than the {numbers} numbers of an image"
            )
        self.settings = {
            "image_size": image_size, "widths": list(widths), "latent_size": latent_size,
            "channels": channels,
        }  # fmt: skip
        self.shape = (channels, image_size, image_size)
        coarsest = (widths[-1], side, side)
        inputs = [channels, *widths[:-1]]
        self.encoder = nn.Sequential()
        for before, after in zip(inputs, widths, strict=True):
            self.encoder.extend([nn.Conv2d(before, after, 4, 2, 1), nn.SiLU()])
        self.code = nn.Linear(math.prod(coarsest), latent_size)
        self.decoder = nn.Sequential(nn.Linear(latent_size, math.prod(coarsest)), nn.SiLU())
        self.decoder.append(nn.Unflatten(1, coarsest))
        for before, after in zip(reversed(widths), reversed(inputs), strict=True):
            self.decoder.append(nn.ConvTranspose2d(before, after, 4, 2, 1))
            self.decoder.append(nn.SiLU())
        self.decoder[-1] = nn.Sigmoid()

    def forward(self, images: Tensor) -> Tensor:
        """Return the reconstructions. Raises: `UserError` for images of another shape."""
        if tuple(images.shape[1:]) != self.shape:
            raise UserError(
                f"images: {tuple(images.shape[1:])}, but this auto-encoder takes {self.shape} "
                "(channels, height, width)"
            )
        maps: Tensor = self.decoder(self.encode(images))
        return maps

    def features(self, images: Tensor) -> Tensor:
        """Return the codes `(N, latent_size)`, which are what an attack on the encoder matches."""
        return self.encode(images)

    def encode(self, images: Tensor) -> Tensor:
        """Return the codes `(N, latent_size)`."""
        code: Tensor = self.code(self.encoder(images).flatten(1))
        return code
