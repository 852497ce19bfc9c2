"""Published networks written out under their own layer names: their weights load into ours and give
their logits.
"""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.errors import Notice, UserError
from robust_ood.models import (
    KEY_MAPS,
    DenseNet,
    ResNet18,
    ThinResNet,
    WideResNet,
    load_weights,
    wrap,
)
from robust_ood.models.key_maps import rename

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class OpenOODBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        changes = stride > 1 or inputs != outputs
        new = [convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)] if changes else []
        self.shortcut = nn.Sequential(*new)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.shortcut(x))


class OpenOODResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 64, 3), nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for number in (1, 2, 3, 4):
            inputs, outputs = widths[number - 1 : number + 1]
            blocks = (
                OpenOODBlock(inputs, outputs, 1 if number == 1 else 2),
                OpenOODBlock(outputs, outputs, 1),
            )
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Stack(nn.Module):
    """Somebody's block of layers, held as `layer`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), convolution(outputs, outputs, 3)
        self.convShortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class OutlierExposureWRN(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        widths, count = (16, 16 * width, 32 * width, 64 * width), (depth - 4) // 6
        self.conv1 = convolution(3, 16, 3)
        for number in (1, 2, 3):
            inputs, outputs = widths[number - 1 : number + 1]
            first = WideBlock(inputs, outputs, 1 if number == 1 else 2)
            self.add_module(
                f"block{number}",
                Stack(first, *(WideBlock(outputs, outputs, 1) for _ in range(count - 1))),
            )
        self.bn1, self.fc = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, 4 * growth, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), convolution(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(out)))], 1)


class Transition(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class ALOEDenseNet(nn.Module):
    def __init__(self, depth: int, growth: int) -> None:
        super().__init__()
        count, channels = (depth - 4) // 6, 2 * growth
        self.conv1 = convolution(3, channels, 3)
        for number in (1, 2, 3):
            layers = [DenseLayer(channels + i * growth, growth) for i in range(count)]
            self.add_module(f"block{number}", Stack(*layers))
            channels += count * growth
            if number < 3:
                self.add_module(f"trans{number}", Transition(channels, channels // 2))
                channels //= 2
        self.bn1, self.fc = nn.BatchNorm2d(channels), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.trans2(self.block2(self.trans1(self.block1(self.conv1(x))))))
        x = F.relu(self.bn1(x))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).flatten(1))


PAIRS = {
    "openood-resnet18": (OpenOODResNet18, lambda: ResNet18(mean=MEAN, std=STD)),
    "outlier-exposure-wrn": (
        lambda: OutlierExposureWRN(40, 2),
        lambda: WideResNet(40, 2, mean=MEAN, std=STD),
    ),
    "aloe-densenet": (lambda: ALOEDenseNet(22, 12), lambda: DenseNet(22, 12, mean=MEAN, std=STD)),
}


def drawn(net: nn.Module) -> nn.Module:
    """Give every parameter and every statistic of BatchNorm a value of its own."""
    draws = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
        elif value.is_floating_point():
            value.add_(torch.randn(value.shape, generator=draws) * 0.05)
    return net.double().eval()


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("name", PAIRS)
def test_published_weights_give_the_published_networks_logits(name, explicit):
    theirs, ours = drawn(PAIRS[name][0]()), PAIRS[name][1]().double().eval()
    content = {"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}
    load_weights(ours, content, name if explicit else None)
    images = torch.rand(
        2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    standardized = (images - torch.tensor(MEAN).view(3, 1, 1).double()) / torch.tensor(STD).view(
        3, 1, 1
    ).double()
    with torch.no_grad():
        wanted = theirs(standardized)
        torch.testing.assert_close(ours(images), wanted)
        torch.testing.assert_close(wrap(theirs, MEAN, STD).double()(images), wanted)


@pytest.mark.parametrize("name", PAIRS)
def test_each_map_is_needed_and_names_all_of_our_weights(name):
    theirs, ours = PAIRS[name][0](), PAIRS[name][1]()
    with pytest.raises(UserError, match="another network"):
        load_weights(ours, theirs.state_dict(), key_map={})
    own = {key for key in ours.state_dict() if not key.startswith("normalize.")}
    assert set(rename(theirs.state_dict(), KEY_MAPS[name].patterns)) == own
    assert KEY_MAPS[name].network == type(ours).__name__


def test_patterns_are_anchored_and_the_first_that_matches_counts():
    """The last BatchNorm of the ALOE network is called `bn1`, as are those inside every layer."""
    state = {
        key: torch.zeros(1)
        for key in ("bn1.weight", "block1.layer.0.bn1.weight", "trans1.bn1.weight", "abn1.x")
    }
    patterns = KEY_MAPS["aloe-densenet"].patterns
    assert list(rename(state, patterns)) == [
        "bn.weight",
        "block1.0.bn1.weight",
        "transition1.bn.weight",
        "abn1.x",
    ]
    assert list(rename({"a.b": torch.zeros(1)}, {"a": "b", r"b\.": "c."})) == ["b.b"]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ({"(": ""}, "expected regular expressions"),
        ({"a": r"\3"}, "expected regular expressions"),
        ({"[ab]": "c"}, "a.x and b.x would both become c.x"),
    ],
)
def test_impossible_maps(patterns, said):
    with pytest.raises(UserError, match=r"^key_map: .*" + re.escape(said)):
        rename({"a.x": torch.zeros(1), "b.x": torch.zeros(1)}, patterns)


def test_unknown_maps_name_the_nearest():
    with pytest.raises(UserError, match="did you mean 'openood-resnet18'"):
        load_weights(ResNet18(), {"a": torch.zeros(1)}, "openod-resnet18")


def test_a_known_map_that_does_not_fit_leaves_the_ordinary_message():
    """`fc` and `head` in one file: the map would make one key of two."""
    state = dict(ThinResNet(8).state_dict()) | {"linear.weight": torch.zeros(10, 64)}
    with pytest.warns(Notice, match=r"1 entry is no weight of ThinResNet .*\(linear\.weight\)"):
        load_weights(ThinResNet(8), state)
