"""Convolutional networks without normalisation layers, whose interval bounds stay tight."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.activation import Activation, activation_named
from robust_ood.models.normalize import CIFAR_MEAN, CIFAR_STD, Normalize
from robust_ood.models.wide_resnet import check_settings


class NonPositiveLinear(nn.Linear):
    """A linear layer whose weights are `-exp(w)`, so that every feature lowers every output.

    Source: ProoD (Meinke et al. 2022), the last layer of its discriminator.
    """

    def reset_parameters(self) -> None:
        """Begin with the mean of the features, negated."""
        nn.init.constant_(self.weight, -math.log(self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in torch
        """Return outputs `(N, K)` of features `(N, D)`."""
        return F.linear(input, -self.weight.exp(), self.bias)


class ConvNet(nn.Module):
    """3 x 3 convolutions and linear layers, images `(N, C, H, W)` in [0, 1] to logits `(N, K)`.

    Source: the XL network of GOOD (Bitterwolf et al. 2020) by default; with other settings its L
    network and the discriminator of ProoD (Meinke et al. 2022).

    Args:
        channels: output channels of each convolution.
        strides: stride of each convolution.
        pooling: side of the windows that are averaged after the last convolution; 1 for none.
        hidden: widths of the linear layers before the last.
        num_classes: K; 1 for a discriminator.
        nonpositive_head: let the last layer's weights be <= 0.
        image_size: H = W of the images.
        mean, std: the normalisation that is the first layer; C values each.
        activation: "relu", "silu" (smooth: for energies), "elu" or "leaky_relu"; `bounds` knows
            ReLU only.
    """

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        channels: Sequence[int] = (128, 128, 256, 256, 256),
        strides: Sequence[int] = (1, 1, 2, 1, 1),
        pooling: int = 1,
        hidden: Sequence[int] = (512, 512),
        num_classes: int = 10,
        nonpositive_head: bool = False,
        image_size: int = 32,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        check_settings(num_classes, pooling=pooling, image_size=image_size)
        for name, sizes in (("channels", channels), ("strides", strides), ("hidden", hidden)):
            if min(sizes, default=1) < 1:
                raise UserError(f"{name}: expected numbers >= 1, got {list(sizes)}")
        if not channels or len(channels) != len(strides):
            raise UserError(
                f"strides: expected one for each of the channels {list(channels)}, "
                f"got {list(strides)}"
            )
        self.settings = {
            "channels": list(channels),
            "strides": list(strides),
            "pooling": pooling,
            "hidden": list(hidden),
            "num_classes": num_classes,
            "nonpositive_head": nonpositive_head,
            "image_size": image_size,
            "mean": list(mean),
            "std": list(std),
            "activation": activation,
        }
        self.normalize = Normalize(mean, std)
        self.convolutions = nn.Sequential()
        inputs = len(mean)
        side = image_size
        for outputs, stride in zip(channels, strides, strict=True):
            convolution = nn.Conv2d(inputs, outputs, 3, stride, 1)
            self.convolutions.append(nn.Sequential(convolution, activation_named(activation)))
            inputs = outputs
            side = (side + stride - 1) // stride
        self.pooling = pooling
        side = side // pooling
        if side < 1:
            raise UserError(f"pooling: {pooling} is larger than the maps of {image_size} pixels")
        features = inputs * side**2
        self.hidden = nn.Sequential()
        for width in hidden:
            layer = nn.Linear(features, width)
            self.hidden.append(nn.Sequential(layer, activation_named(activation)))
            features = width
        head = NonPositiveLinear if nonpositive_head else nn.Linear
        self.head: nn.Linear = head(features, num_classes)
        self.feature_layers = tuple(f"convolutions.{n}" for n in range(len(channels)))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.convolutions(self.normalize(images))
        if self.pooling > 1:
            maps = F.avg_pool2d(maps, self.pooling)
        logits: Tensor = self.head(self.hidden(maps.flatten(1)))
        return logits
