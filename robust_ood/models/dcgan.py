"""A generator and a discriminator of small images (Radford et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.wide_resnet import check_settings


class DCGANGenerator(nn.Module):
    """Latent vectors `(N, latent_size)` to images `(N, channels, H, W)` in [0, 1].

    Source: DCGAN (Radford et al. 2016), in the form of Lee et al. 2018, whose last layer is a
    sigmoid.

    Args:
        image_size: H = W, 4 times a power of 2 and at least 8: each layer doubles the side, from 4.
        latent_size: numbers in a latent vector; at most as many as an image has.
        width: channels before the last layer are twice this, and double with each layer before it.
        channels: of the images.
    """

    @typed
    def __init__(
        self, image_size: int = 32, latent_size: int = 100, width: int = 64, channels: int = 3
    ) -> None:
        super().__init__()
        doublings = _doublings(image_size)
        check_settings(1, latent_size=latent_size, width=width, channels=channels)
        numbers = channels * image_size**2
        if latent_size > numbers:
            raise UserError(
                f"latent_size: {latent_size} is more than the {numbers} numbers of an image"
            )
        self.latent_size = latent_size
        outputs = width * 2**doublings
        self.layers = nn.Sequential(nn.ConvTranspose2d(latent_size, outputs, 4, 1, 0, bias=False))
        for _ in range(doublings - 1):
            self.layers.extend([nn.BatchNorm2d(outputs), nn.ReLU()])
            self.layers.append(nn.ConvTranspose2d(outputs, outputs // 2, 4, 2, 1, bias=False))
            outputs = outputs // 2
        self.layers.extend([nn.BatchNorm2d(outputs), nn.ReLU()])
        self.layers.append(nn.ConvTranspose2d(outputs, channels, 4, 2, 1, bias=False))
        _initialize(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images."""
        maps: Tensor = self.layers(latents[:, :, None, None])  # (N, latent_size, 1, 1)
        return maps.sigmoid()


class DCGANDiscriminator(nn.Module):
    """Images `(N, channels, H, W)` in [0, 1] to the log-odds `(N,)` that they are real.

    Source: DCGAN (Radford et al. 2016), in the form of Lee et al. 2018, without its last sigmoid,
    which the loss has.

    Args:
        image_size: H = W, 4 times a power of 2 and at least 8.
        width: channels after the first layer are twice this, and double with each layer.
        channels: of the images.
    """

    @typed
    def __init__(self, image_size: int = 32, width: int = 64, channels: int = 3) -> None:
        super().__init__()
        doublings = _doublings(image_size)
        check_settings(1, width=width, channels=channels)
        outputs = 2 * width
        self.layers = nn.Sequential(nn.Conv2d(channels, outputs, 4, 2, 1, bias=False))
        self.layers.append(nn.LeakyReLU(0.2))
        for _ in range(doublings - 1):
            self.layers.append(nn.Conv2d(outputs, outputs * 2, 4, 2, 1, bias=False))
            outputs = outputs * 2
            self.layers.extend([nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)])
        self.layers.append(nn.Conv2d(outputs, 1, 4, 1, 0, bias=False))
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return log-odds."""
        log_odds: Tensor = self.layers(images)  # (N, 1, 1, 1)
        return log_odds.flatten()


def _doublings(image_size: int) -> int:
    """Return how often a side of 4 doubles until it is `image_size`."""
    doublings = max(image_size // 4, 1).bit_length() - 1
    if doublings < 1 or image_size != 4 * 2**doublings:
        raise UserError(f"image_size: expected 8, 16, 32, 64, ... pixels, got {image_size}")
    return doublings


def _initialize(net: nn.Module) -> None:
    """Draw the initial weights of DCGAN, with a standard deviation of 0.02."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
