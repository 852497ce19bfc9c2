"""Pre-activation residual networks for small images (He et al. 2016), in two published forms."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.activation import Activation, activation_named, check_choice
from robust_ood.models.normalize import CIFAR_MEAN, CIFAR_STD, Normalize, for_channels
from robust_ood.models.padding import Padding, convolution
from robust_ood.models.wide_resnet import check_settings, initialize

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)


class _Block(nn.Module):
    """Two convolutions, each after its normalisation and activation, and a shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: Activation, padding: Padding
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, stride, padding)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = convolution(outputs, outputs, 1, padding)
        self.activate = activation_named(activation)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if padding == "same":
                self.shortcut = convolution(inputs, outputs, stride, padding)
        self.from_input = padding == "same"

    def forward(self, x: Tensor) -> Tensor:
        active = self.activate(self.bn1(x))
        shortcut = x
        if self.shortcut is not None:
            shortcut = self.shortcut(x if self.from_input else active)
        out = self.conv1(active)
        result: Tensor = self.conv2(self.activate(self.bn2(out))) + shortcut
        return result


class PreActResNet(nn.Module):
    """A pre-activation ResNet, images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`.

    Source: He et al. 2016 (identity mappings), with a 3 x 3 stem, no max-pooling, 64 to 512
    channels. With symmetric padding the network of HAT's code (Rade and Moosavi-Dezfooli 2022),
    which HALO's derives from; with "same" that of Gowal et al. 2020, in which RobustBench keeps
    HAT's published weights, ATD's features among them.

    Args:
        depth: 18 or 34.
        num_classes: K.
        mean, std: the normalisation that is the first layer.
        channels: of the images; by default as many as `mean` has values, 3. For another number,
            the default mean and std are the averages of CIFAR's.
        activation: "relu", "silu" (smooth; called Swish by others), "elu" or "leaky_relu".
        padding: "symmetric", with 1 x 1 shortcuts of the activated input; "same": convolutions of
            stride 2 pad right and bottom only, and shortcuts are 3 x 3 and read the input itself.
    """

    feature_layers = ("layer1", "layer2", "layer3", "layer4")

    @typed
    def __init__(
        self,
        depth: int = 18,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        channels: int | None = None,
        activation: Activation = "relu",
        padding: Padding = "symmetric",
    ) -> None:
        super().__init__()
        check_settings(num_classes)
        check_choice("padding", padding, ("symmetric", "same"))
        if depth not in _BLOCKS:
            raise UserError(f"depth: expected 18 or 34, got {depth}")
        mean, std = for_channels(channels, mean, std)
        self.settings = {
            "depth": depth,
            "num_classes": num_classes,
            "mean": list(mean),
            "std": list(std),
            "activation": activation,
            "padding": padding,
        }
        self.normalize = Normalize(mean, std)
        self.activate = activation_named(activation)
        self.conv1 = nn.Conv2d(len(mean), _WIDTHS[0], 3, 1, 1, bias=False)
        inputs = _WIDTHS[0]
        for name, width, count in zip(self.feature_layers, _WIDTHS, _BLOCKS[depth], strict=True):
            stage = nn.Sequential()
            stride = 1 if name == "layer1" else 2
            stage.append(_Block(inputs, width, stride, activation, padding))
            for _ in range(count - 1):
                stage.append(_Block(width, width, 1, activation, padding))
            self.add_module(name, stage)
            inputs = width
        self.bn = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.conv1(self.normalize(images))
        for name in self.feature_layers:
            maps = self.get_submodule(name)(maps)
        maps = self.activate(self.bn(maps))
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits
