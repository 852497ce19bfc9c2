"""DenseNet-BC (Huang et al. 2017), as the ALOE and ODIN papers use it for 32 x 32 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.normalize import CIFAR_MEAN, CIFAR_STD, Normalize, for_channels
from robust_ood.models.wide_resnet import check_settings, initialize


class _Layer(nn.Module):
    """Add `growth` channels to the input, through a bottleneck of `4 growth` where asked."""

    def __init__(self, inputs: int, growth: int, bottleneck: bool, dropout: float) -> None:
        super().__init__()
        middle = inputs
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1: nn.Module = nn.Identity()
        self.bn2: nn.Module = nn.Identity()
        if bottleneck:
            middle = 4 * growth
            self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, growth, 3, 1, 1, bias=False)
        self.bottleneck = bottleneck
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x), inplace=True)
        if self.bottleneck:
            out = self._dropped(self.conv1(out))
            out = F.relu(self.bn2(out), inplace=True)
        return torch.cat([x, self._dropped(self.conv2(out))], 1)

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.dropout:
            return x
        return F.dropout(x, self.dropout, self.training)


class _Transition(nn.Module):
    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(F.relu(self.bn(x), inplace=True))
        if self.dropout:
            out = F.dropout(out, self.dropout, self.training)
        return F.avg_pool2d(out, 2)


class DenseNet(nn.Module):
    """A densely connected network, images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`.

    Source: Huang et al. 2017, DenseNet-BC; layer for layer the network of the ALOE and ODIN code.
    One deviation: the convolutions start from He et al.'s distribution, as in the paper, where
    ALOE's code takes the standard deviation `sqrt(2 / layers in a block)`.

    Args:
        depth: 6n + 4 with bottlenecks (3n + 4 without) for n layers in each of the three blocks;
            100 in the papers.
        growth: channels that each layer adds; 12 in the papers.
        reduction: share of channels that a transition keeps; 0.5 in the papers.
        bottleneck: 1 x 1 convolutions before the 3 x 3 ones (the B of BC).
        dropout: probability after each convolution; 0 in the papers.
        num_classes: K.
        mean, std: the normalisation that is the first layer.
        channels: of the images; by default as many as `mean` has values, 3. For another number,
            the default mean and std are the averages of CIFAR's.
    """

    feature_layers = ("conv1", "transition1", "transition2", "relu")

    @typed
    def __init__(  # noqa: PLR0913 -- a public constructor: its arguments are the paper's settings
        self,
        depth: int = 100,
        growth: int = 12,
        reduction: float = 0.5,
        bottleneck: bool = True,
        dropout: float = 0.0,
        num_classes: int = 10,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        step = 6 if bottleneck else 3
        if depth < step + 4 or (depth - 4) % step:
            raise UserError(f"depth: {depth} is not {step}n + 4 for n >= 1 layers in each block")
        check_settings(num_classes, dropout, growth=growth)
        if not 0 < reduction <= 1:
            raise UserError(f"reduction: expected a number in (0, 1], got {reduction}")
        mean, std = for_channels(channels, mean, std)
        self.settings = {
            "depth": depth,
            "growth": growth,
            "reduction": reduction,
            "bottleneck": bottleneck,
            "dropout": dropout,
            "num_classes": num_classes,
            "mean": list(mean),
            "std": list(std),
        }
        layers = (depth - 4) // step
        channels = 2 * growth
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(len(mean), channels, 3, 1, 1, bias=False)
        for number in (1, 2, 3):
            block = nn.Sequential()
            for _ in range(layers):
                block.append(_Layer(channels, growth, bottleneck, dropout))
                channels += growth
            self.add_module(f"block{number}", block)
            if number < 3:
                reduced = int(channels * reduction)
                if reduced < 1:
                    raise UserError(
                        f"reduction: {reduction} leaves none of the {channels} channels of block "
                        f"{number}"
                    )
                self.add_module(f"transition{number}", _Transition(channels, reduced, dropout))
                channels = reduced
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.conv1(self.normalize(images))
        for name in ("block1", "transition1", "block2", "transition2", "block3"):
            maps = self.get_submodule(name)(maps)
        logits: Tensor = self.head(self.relu(self.bn(maps)).mean((2, 3)))
        return logits
