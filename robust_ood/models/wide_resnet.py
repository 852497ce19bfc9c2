"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.activation import Activation, activation_named, check_choice
from robust_ood.models.normalize import CIFAR_MEAN, CIFAR_STD, Normalize, for_channels
from robust_ood.models.padding import Padding, SameConv2d

Norm = Literal["batch", "none"]


class _Block(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dropout: float,
        norm: Norm,
        activation: Activation,
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.bn1 = _norm(norm, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
        self.bn2 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
        self.dropout = dropout
        self.activate = activation_named(activation, inplace=norm == "batch")
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activate(self.bn1(x))
        # As in the authors' code, a block that changes the width takes its shortcut after the
        # activation.
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out = self.activate(self.bn2(self.conv1(active)))
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        result: Tensor = shortcut + self.conv2(out)
        return result


class WideResNet(nn.Module):
    """A wide residual network, images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`.

    Args:
        depth: 6n + 4 for n blocks in each of the three groups; 28, 34 and 40 in the papers.
        width: widening factor.
        num_classes: K.
        dropout: probability between a block's convolutions.
        mean, std: the normalisation that is the first layer.
        channels: of the images; by default as many as `mean` has values, 3. For another number,
            the default mean and std are the averages of CIFAR's.
        norm: "batch" for BatchNorm; "none" for convolutions with biases and torch's own initial
            weights, as energy-based classifiers have it (JEM).
        activation: "relu", "silu" (smooth), "elu" or "leaky_relu" (slope 0.2, as in JEM's code).
        padding: "symmetric"; "same" pads convolutions of stride 2 right and bottom only, as the
            networks of Gowal et al. 2020 do. It needs `norm` "batch".
    """

    feature_layers = ("group1", "group2", "group3")

    @typed
    def __init__(  # noqa: PLR0913  # the settings that users have
        self,
        depth: int = 40,
        width: int = 2,
        num_classes: int = 10,
        dropout: float = 0.0,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        channels: int | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        check_settings(num_classes, dropout, width=width)
        check_choice("norm", norm, ("batch", "none"))
        check_choice("padding", padding, ("symmetric", "same"))
        if padding == "same" and norm == "none":
            raise UserError("padding: 'same' is for networks with norm 'batch'")
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"depth: {depth} is not 6n + 4 for n >= 1 blocks in each group")
        mean, std = for_channels(channels, mean, std)
        self.settings = {
            "depth": depth,
            "width": width,
            "num_classes": num_classes,
            "dropout": dropout,
            "mean": list(mean),
            "std": list(std),
            "norm": norm,
            "activation": activation,
        }
        # Written only where it differs: what was computed of earlier networks keeps its name.
        if padding != "symmetric":
            self.settings["padding"] = padding
        blocks = (depth - 4) // 6
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.normalize = Normalize(mean, std)
        self.activate = activation_named(activation, inplace=norm == "batch")
        self.conv1 = nn.Conv2d(len(mean), widths[0], 3, 1, 1, bias=norm == "none")
        for number in (1, 2, 3):
            inputs = widths[number - 1]
            outputs = widths[number]
            stride = 1 if number == 1 else 2
            group = nn.Sequential(_Block(inputs, outputs, stride, dropout, norm, activation))
            if stride == 2 and padding == "same":
                group[0].conv1 = SameConv2d(inputs, outputs)
            for _ in range(blocks - 1):
                group.append(_Block(outputs, outputs, 1, dropout, norm, activation))
            self.add_module(f"group{number}", group)
        self.bn = _norm(norm, widths[3])
        self.head = nn.Linear(widths[3], num_classes)
        # He et al.'s weights keep the variance of each convolution; without normalisation, the
        # sums of residual blocks would grow with it.
        if norm == "batch":
            initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.conv1(self.normalize(images))
        for name in self.feature_layers:
            maps = self.get_submodule(name)(maps)
        maps = self.activate(self.bn(maps))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    return nn.BatchNorm2d(channels)


def check_settings(num_classes: int, dropout: float = 0.0, **sizes: int) -> None:
    """Raise `UserError` for sizes below 1, or a dropout that is no probability below 1."""
    for field, value in {"num_classes": num_classes, **sizes}.items():
        if value < 1:
            raise UserError(f"{field}: expected a number >= 1, got {value}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: expected a number in [0, 1), got {dropout}")


def initialize(net: nn.Module) -> None:
    """Draw convolutions from He et al.'s normal distribution, and set linear biases to zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
