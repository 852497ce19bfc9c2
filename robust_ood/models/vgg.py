"""VGG networks without BatchNorm (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.models.normalize import CIFAR_MEAN, CIFAR_STD, Normalize
from robust_ood.models.wide_resnet import check_settings

_CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""How many 3 x 3 convolutions each of the five blocks has."""
_WIDENING = (1, 2, 4, 8, 8)


class VGG(nn.Module):
    """A VGG network without normalisation layers, images `(N, 3, H, W)` in [0, 1] to `(N, K)`.

    Five blocks of convolutions, each followed by a pooling of 2 x 2, then linear layers with
    dropout. Source: the classifier of Lee et al. 2018 (confidence-calibrated classifiers), a VGG-13
    with the head 512-512-512, by default.

    Args:
        depth: 11, 13, 16 or 19.
        width: channels of the first block, 64 in the paper; the others have 2, 4, 8 and 8 times as
            many.
        hidden: widths of the linear layers before the last.
        num_classes: K.
        dropout: probability after each hidden linear layer.
        image_size: H = W of the images, a multiple of 32.
        mean, std: the normalisation that is the first layer; 0 and 1 in the paper, which has none.
    """

    feature_layers = ("block1", "block2", "block3", "block4", "block5")

    @typed
    def __init__(  # the settings that users have
        self,
        depth: int = 13,
        width: int = 64,
        hidden: Sequence[int] = (512, 512),
        num_classes: int = 10,
        dropout: float = 0.5,
        image_size: int = 32,
        mean: Sequence[float] = CIFAR_MEAN,
        std: Sequence[float] = CIFAR_STD,
    ) -> None:
        super().__init__()
        check_settings(num_classes, dropout, width=width, image_size=image_size)
        if depth not in _CONVOLUTIONS:
            raise UserError(f"depth: expected one of {list(_CONVOLUTIONS)}, got {depth}")
        if image_size % 32:
            raise UserError(f"image_size: expected a multiple of 32, got {image_size}")
        if min(hidden, default=1) < 1:
            raise UserError(f"hidden: expected numbers >= 1, got {list(hidden)}")
        self.settings = {
            "depth": depth,
            "width": width,
            "hidden": list(hidden),
            "num_classes": num_classes,
            "dropout": dropout,
            "image_size": image_size,
            "mean": list(mean),
            "std": list(std),
        }
        self.normalize = Normalize(mean, std)
        inputs = len(mean)
        for name, count, widening in zip(
            self.feature_layers, _CONVOLUTIONS[depth], _WIDENING, strict=True
        ):
            self.add_module(name, _block(inputs, width * widening, count))
            inputs = width * widening
        features = inputs * (image_size // 32) ** 2
        self.hidden = nn.Sequential()
        for size in hidden:
            self.hidden.append(nn.Sequential(nn.Linear(features, size), nn.ReLU()))
            self.hidden.append(nn.Dropout(dropout))
            features = size
        self.head = nn.Linear(features, num_classes)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        maps = self.normalize(images)
        for name in self.feature_layers:
            maps = self.get_submodule(name)(maps)
        logits: Tensor = self.head(self.hidden(maps.flatten(1)))
        return logits


def _block(inputs: int, outputs: int, count: int) -> nn.Sequential:
    block = nn.Sequential()
    for _ in range(count):
        block.append(nn.Conv2d(inputs, outputs, 3, 1, 1))
        block.append(nn.ReLU())
        inputs = outputs
    block.append(nn.MaxPool2d(2))
    return block


def _initialize(net: nn.Module) -> None:
    """Draw convolutions from He et al.'s normal distribution, without biases at first."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
