"""Residual networks for 32 x 32 images (He et al. 2016): the thin family, and a ResNet-18."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.normalize import CIFAR_MEAN, CIFAR_STD, Normalize, for_channels
from robust_ood.models.wide_resnet import check_settings, initialize


class _SubsampleAndPad(nn.Module):
    """Option A of the paper: every second pixel, and zeros for the new channels, half a side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def _project(inputs: int, outputs: int) -> nn.Module:
    """Option B of the paper: a strided 1 x 1 convolution."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), inplace=True)


class _ResNet(nn.Module):
    """A stem and stages of basic blocks; each later stage halves the resolution."""

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        shortcut: type[_SubsampleAndPad] | None,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        check_settings(num_classes)
        make_shortcut = shortcut or _project
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(len(mean), widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        self.feature_layers = tuple(f"layer{number + 1}" for number in range(len(widths)))
        for name, width, count in zip(self.feature_layers, widths, blocks, strict=True):
            stage = nn.Sequential()
            if inputs == width:
                stage.append(_Block(inputs, width, 1, nn.Identity()))
            else:
                stage.append(_Block(inputs, width, 2, make_shortcut(inputs, width)))
            for _ in range(count - 1):
                stage.append(_Block(width, width, 1, nn.Identity()))
            self.add_module(name, stage)
            inputs = width
        self.head = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = F.relu(self.bn1(self.conv1(self.normalize(images))), inplace=True)
        for name in self.feature_layers:
            maps = self.get_submodule(name)(maps)
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


class ThinResNet(_ResNet):
    """The CIFAR ResNet-20, -32, -44, ...: 16, 32, 64 channels, parameter-free shortcuts.

    Args:
        depth: 6n + 2 for n blocks in each of the three stages.
        num_classes: K.
        mean, std: the normalisation that is the first layer.
        channels: of the images; by default as many as `mean` has values, 3. For another number,
            the default mean and std are the averages of CIFAR's.
    """

    @typed
    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        channels: int | None = None,
    ) -> None:
        mean, std = for_channels(channels, mean, std)
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"depth: {depth} is not 6n + 2 for n >= 1 blocks in each stage")
        blocks = (depth - 2) // 6
        super().__init__((16, 32, 64), (blocks,) * 3, _SubsampleAndPad, num_classes, mean, std)
        self.settings = {
            "depth": depth,
            "num_classes": num_classes,
            "mean": list(mean),
            "std": list(std),
        }


class _BasicResNet(_ResNet):
    """A ResNet of basic blocks with a 3 x 3 stem and no max-pooling, four stages."""

    blocks: ClassVar[tuple[int, ...]]

    @typed
    def __init__(
        self,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        channels: int | None = None,
        width: int = 64,
    ) -> None:
        mean, std = for_channels(channels, mean, std)
        check_settings(num_classes, width=width)
        widths = (width, 2 * width, 4 * width, 8 * width)
        super().__init__(widths, self.blocks, None, num_classes, mean, std)
        self.settings = {"num_classes": num_classes, "mean": list(mean), "std": list(std)}
        # Written only where it differs: what was computed of earlier networks keeps its name.
        if width != 64:
            self.settings["width"] = width


class ResNet18(_BasicResNet):
    """ResNet-18 with a 3 x 3 stem and no max-pooling: 64 to 512 channels, two blocks a stage.

    Args:
        num_classes: K.
        mean, std: the normalisation that is the first layer.
        channels: of the images; by default as many as `mean` has values, 3. For another number,
            the default mean and std are the averages of CIFAR's.
        width: channels of the first stage; each later one has twice as many. 128 for LRR
            (Diffenderfer et al. 2021).
    """

    blocks = (2, 2, 2, 2)


class ResNet34(_BasicResNet):
    """ResNet-34 with a 3 x 3 stem and no max-pooling: 64 to 512 channels, 3, 4, 6 and 3 blocks.

    Source: Lee et al. 2018 (Mahalanobis), whose CIFAR networks it is.

    Args:
        num_classes, mean, std, channels, width: as of `ResNet18`.
    """

    blocks = (3, 4, 6, 3)
