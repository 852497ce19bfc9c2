"""Networks of papers on robust detection, written out under their authors' layer names: files of
random weights in that layout load into ours and give their logits.
"""

from __future__ import annotations

import copy
import json
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from robust_ood import cli
from robust_ood.detectors import MSP, DiscriminatorScore, OutlierClassScore
from robust_ood.errors import Notice, UserError
from robust_ood.models import (
    KEY_MAPS,
    ConvNet,
    DenseNet,
    Discriminated,
    Gated,
    NeuralODENet,
    OutlierClass,
    PreActResNet,
    ResNet18,
    WideResNet,
    load_weights,
)
from robust_ood.models.key_maps import find_family
from robust_ood.randomness import generator

PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SWISH = nn.SiLU


def plain(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def drawn(net: nn.Module) -> nn.Module:
    """Give every parameter and every statistic of BatchNorm a value of its own."""
    draws = torch.Generator().manual_seed(0)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
        elif value.is_floating_point():
            value.add_(torch.randn(value.shape, generator=draws) * 0.05)
    return net.double().eval()


# --- LRR (RobustBench): torchvision's names, twice as wide


class DownsampledBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = plain(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = plain(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                plain(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class LRR(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mu", torch.zeros(1, 3, 1, 1))
        self.register_buffer("sigma", torch.ones(1, 3, 1, 1))
        self.conv1, self.bn1 = plain(3, width, 3), nn.BatchNorm2d(width)
        inputs = width
        for number in range(4):
            outputs = width * 2**number
            stride = 1 if number == 0 else 2
            blocks = [
                DownsampledBlock(inputs, outputs, stride),
                DownsampledBlock(outputs, outputs, 1),
            ]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.avg_pool2d(x, 4).flatten(1))


# --- HALO and HAT: pre-activation blocks, 1 x 1 shortcuts of the activated input


class HATBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), plain(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), plain(outputs, outputs, 3)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(plain(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        shortcut = self.shortcut(active) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class HAT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = plain(3, 64, 3)
        inputs = 64
        for number, outputs in enumerate((64, 128, 256, 512), 1):
            blocks = [HATBlock(inputs, outputs, 1 if number == 1 else 2)]
            blocks.append(HATBlock(outputs, outputs, 1))
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inputs = outputs
        self.bn, self.linear = nn.BatchNorm2d(512), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.linear(F.avg_pool2d(F.relu(self.bn(x)), 4).flatten(1))


# --- DeepMind's layouts in RobustBench: ATD's and AROS's networks


def shifted(x: Tensor, stride: int) -> Tensor:
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class DMPreActBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_2d_2 = plain(outputs, outputs, 3)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_2d_1(shifted(F.silu(self.batchnorm_0(x)), self.stride))
        out = self.conv_2d_2(F.silu(self.batchnorm_1(out)))
        if hasattr(self, "shortcut"):
            x = self.shortcut(shifted(x, self.stride))
        return out + x


class DMPreActResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.register_buffer("std", torch.ones(3, 1, 1))
        self.conv_2d = plain(3, 64, 3)
        inputs = 64
        for number, outputs in enumerate((64, 128, 256, 512)):
            blocks = [DMPreActBlock(inputs, outputs, 1 if number == 0 else 2)]
            blocks.append(DMPreActBlock(outputs, outputs, 1))
            self.add_module(f"layer_{number}", nn.Sequential(*blocks))
            inputs = outputs
        self.batchnorm, self.logits = nn.BatchNorm2d(512), nn.Linear(512, 10)

    def features(self, x: Tensor) -> Tensor:
        x = self.layer_3(self.layer_2(self.layer_1(self.layer_0(self.conv_2d(x)))))
        return F.avg_pool2d(F.silu(self.batchnorm(x)), 4).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


class DMBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, 0, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = plain(outputs, outputs, 3)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.silu(self.batchnorm_0(x))
        out = self.conv_0(shifted(active, self.stride))
        out = self.conv_1(F.silu(self.batchnorm_1(out)))
        return out + (self.shortcut(active) if hasattr(self, "shortcut") else x)


class DMGroup(nn.Module):
    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        blocks = [DMBlock(inputs, outputs, stride)]
        blocks += [DMBlock(outputs, outputs, 1) for _ in range(count - 1)]
        self.block = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DMWideResNet(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        self.register_buffer("mean", torch.zeros(3, 1, 1))
        self.init_conv = plain(3, 16, 3)
        self.layer = nn.Sequential(
            DMGroup(count, 16, 16 * width, 1),
            DMGroup(count, 16 * width, 32 * width, 2),
            DMGroup(count, 32 * width, 64 * width, 2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, 10)

    def features(self, x: Tensor) -> Tensor:
        x = F.silu(self.batchnorm(self.layer(self.init_conv(x))))
        return F.avg_pool2d(x, 8).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


# --- GOOD and ProoD: numbered layers, and the joint network


class Numbered(nn.Module):
    """GOOD's and ProoD's convolutional networks, at a few channels."""

    def __init__(
        self, channels: list[int], strides: list[int], widths: list[int], classes: int, pool: int
    ) -> None:
        super().__init__()
        self.names = []
        inputs, side = 3, 32
        for number, (outputs, stride) in enumerate(zip(channels, strides, strict=True), 1):
            self.add_module(f"C{number}", nn.Conv2d(inputs, outputs, 3, stride, 1))
            self.names.append(f"C{number}")
            inputs, side = outputs, side // stride
        width = inputs * (side // pool) ** 2
        for number, outputs in enumerate([*widths, classes], len(channels) + 1):
            self.add_module(f"L{number}", nn.Linear(width, outputs))
            self.names.append(f"L{number}")
            width = outputs
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            layer = self.get_submodule(name)
            if name.startswith("L") and x.dim() == 4:
                x = (F.avg_pool2d(x, self.pool) if self.pool > 1 else x).flatten(1)
            if name == self.names[-1]:
                return self.last(layer, x)
            x = F.relu(layer(x))
        raise AssertionError

    def last(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return layer(x)


class NonPositive(Numbered):
    def last(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x, -layer.weight.exp(), layer.bias)


class KuangliuBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = plain(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = plain(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                plain(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class Kuangliu(nn.Module):
    """The ResNet18 of kuangliu's, HALO's and ProoD's code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = plain(3, 64, 3), nn.BatchNorm2d(64)
        inputs = 64
        for number, outputs in enumerate((64, 128, 256, 512), 1):
            stride = 1 if number == 1 else 2
            blocks = [KuangliuBlock(inputs, outputs, stride), KuangliuBlock(outputs, outputs, 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inputs = outputs
        self.linear = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(x)))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


class Joint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_model = Kuangliu()
        self.detector = NonPositive([6, 8, 8], [1, 2, 1], [5], 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.log_softmax(self.base_model(x), 1)
        gate = self.detector(x)
        outside = F.logsigmoid(-gate) - math.log(10)
        return torch.logaddexp(F.logsigmoid(gate) + logits, outside)


S_SIZE = {"channels": (6, 8, 8), "strides": (1, 2, 1), "pooling": 2, "hidden": (5,)}
ONE_NONPOSITIVE = {**S_SIZE, "num_classes": 1, "nonpositive_head": True}

PAIRS = {
    "lrr-resnet18": (partial(LRR, 8), partial(ResNet18, width=8, **PIXELS), ""),
    "kuangliu-resnet18": (Kuangliu, partial(ResNet18, **PIXELS), "module.0."),
    "hat-preact-resnet": (HAT, partial(PreActResNet, **PIXELS), "module.0."),
    "deepmind-preact-resnet": (
        DMPreActResNet,
        partial(PreActResNet, activation="silu", padding="same", **PIXELS),
        "",
    ),
    "deepmind-wrn": (
        partial(DMWideResNet, 16, 2),
        partial(WideResNet, 16, 2, activation="silu", padding="same", **PIXELS),
        "module.",
    ),
    "good-xl": (
        partial(Numbered, [4, 4, 6, 6, 6], [1, 1, 2, 1, 1], [7, 5], 10, 1),
        partial(ConvNet, channels=(4, 4, 6, 6, 6), hidden=(7, 5), **PIXELS),
        "",
    ),
    "good-l": (
        partial(Numbered, [4, 4, 6, 6, 6], [1, 1, 2, 1, 1], [7], 10, 1),
        partial(ConvNet, channels=(4, 4, 6, 6, 6), hidden=(7,), **PIXELS),
        "",
    ),
    "prood-discriminator": (
        partial(NonPositive, [6, 8, 8], [1, 2, 1], [5], 1, 2),
        partial(ConvNet, **ONE_NONPOSITIVE, **PIXELS),
        "",
    ),
    "prood": (
        Joint,
        lambda: Gated(ResNet18(**PIXELS), ConvNet(**ONE_NONPOSITIVE, **PIXELS)),
        "",
    ),
}
"""By key map: the authors' network, ours, and what stands before the keys of their files."""


ELSEWHERE = {
    *("openood-resnet18", "outlier-exposure-wrn", "aloe-densenet"),  # test_key_maps.py
    "resnet20",  # test_resnet20.py
    *("atd-discriminator", "aros"),  # below
}


def test_every_key_map_is_tried_on_a_file_in_its_layout():
    assert {*PAIRS, *ELSEWHERE} == set(KEY_MAPS)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32, generator=generator(3), dtype=torch.float64)


def prefixed(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in net.state_dict().items()}


@pytest.mark.filterwarnings("ignore::robust_ood.errors.Notice")
@pytest.mark.parametrize("name", PAIRS)
def test_published_weights_give_the_published_networks_logits(name, images):
    build_theirs, build_ours, prefix = PAIRS[name]
    theirs = drawn(build_theirs())
    content = {"epoch": 3, "state_dict": prefixed(prefix, theirs)}
    assert find_family(content["state_dict"]) == name
    with torch.no_grad():
        wanted = theirs(images)
        for key_map in (None, name) if prefix in ("", "module.") else (None,):
            ours = load_weights(build_ours().double().eval(), content, key_map)
            torch.testing.assert_close(ours(images), wanted)


# --- ATOM's repository: several classes of outliers, and CCU's file


def small_densenet(classes: int) -> DenseNet:
    return DenseNet(depth=10, growth=4, num_classes=classes)


def test_sofl_is_minus_the_probability_of_all_classes_of_outliers(images):
    """K + 5 outputs on CIFAR-10, K + 10 on CIFAR-100."""
    theirs = drawn(small_densenet(10 + 5))
    net = OutlierClass(small_densenet(10), outliers=5).double().eval()
    load_weights(net, theirs.state_dict())
    detector = OutlierClassScore(net)
    with torch.no_grad():
        wanted = -theirs(images).softmax(1)[:, 10:].sum(1)
        torch.testing.assert_close(detector.published(images).double(), wanted)
        torch.testing.assert_close(net(images), theirs(images)[:, :10])
        assert net.joint_logits(images).shape == (2, 11)
    again = OutlierClass(**net.settings).double().eval()
    load_weights(again, net.state_dict())
    torch.testing.assert_close(again.joint_logits(images), net.joint_logits(images))


def test_ccu_s_file_gives_the_network_that_its_authors_score(images):
    """Their evaluation reads the DenseNet inside of the joint network."""
    theirs = drawn(small_densenet(10))
    content = {
        **prefixed("base_model.", theirs),
        "mm.mu": torch.zeros(3, 4),
        "loglam": torch.ones(()),
    }
    with pytest.warns(Notice, match="2 entries are no weight of DenseNet"):
        ours = load_weights(small_densenet(10).double().eval(), content)
    torch.testing.assert_close(ours(images), theirs(images))


# --- ATD: a discriminator beside RobustBench's network, in a file of its own


def atd_discriminator() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((512, 512), (512, 256), (256, 128), (128, 64), (64, 1)):
        layers.append(nn.Conv2d(inputs, outputs, 1, bias=False))
        if outputs not in (512, 1):
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.LeakyReLU(0.2) if outputs > 1 else nn.Sigmoid())
    return nn.Sequential(*layers)


def atd(backbone: nn.Module) -> Discriminated:
    return Discriminated(backbone, (512, 256, 128, 64), "leaky_relu", "batch", bias=False)


def rade() -> PreActResNet:
    return PreActResNet(activation="silu", padding="same", **PIXELS)


@pytest.mark.filterwarnings("ignore::robust_ood.errors.Notice")
def test_atd_s_discriminator_is_read_beside_its_network(images):
    theirs, discriminator = drawn(DMPreActResNet()), drawn(atd_discriminator())
    file = prefixed("main.", discriminator)
    assert find_family(file) == "atd-discriminator"
    backbone = load_weights(rade(), theirs.state_dict())
    net = load_weights(atd(backbone), file).double().eval()
    with torch.no_grad():
        wanted = discriminator(theirs.features(images)[:, :, None, None]).flatten()
        torch.testing.assert_close(DiscriminatorScore(net).published(images).double(), wanted)
        torch.testing.assert_close(net(images), theirs(images))
    again = load_weights(Discriminated(**{**net.settings, "net": rade()}), net.state_dict())
    torch.testing.assert_close(again.double().eval()(images), net(images))


def test_a_discriminator_alone_needs_a_network_with_weights_of_its_own():
    with pytest.raises(UserError, match="seems to hold the discriminator alone"):
        load_weights(atd(rade()), prefixed("main.", atd_discriminator()))


# --- AROS: projected features that follow a vector field


class AROSTail(nn.Module):
    """What the public code puts after the network, with the solver of scipy in the solver's place."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, 128, generator=generator(1)) / 11)
        self.field, self.head = nn.Linear(128, 128), nn.Linear(128, 10)

    def file(self, backbone: nn.Module) -> dict[str, Tensor]:
        return {
            **prefixed("0.", backbone),
            "1.fc0.linear.weight": self.weight.detach(),
            "2.0.odefunc.fc1._layer.weight": self.field.weight.detach(),
            "2.0.odefunc.fc1._layer.bias": self.field.bias.detach(),
            "2.1.fc0.weight": self.head.weight.detach(),
            "2.1.fc0.bias": self.head.bias.detach(),
        }

    def forward(self, features: Tensor) -> Tensor:
        ends = []
        for start in features @ self.weight:
            path = solve_ivp(
                lambda time, y: np.sin(-self.field(torch.from_numpy(y)).detach().numpy()),
                (0, 5), start.detach().numpy(), rtol=1e-9, atol=1e-9,
            )  # fmt: skip
            ends.append(torch.from_numpy(path.y[:, -1]))
        return self.head(torch.stack(ends))


def same_padded_wrn() -> WideResNet:
    return WideResNet(10, 1, activation="silu", padding="same", **PIXELS)


@pytest.mark.filterwarnings("ignore::robust_ood.errors.Notice")
def test_aros_is_the_solution_of_its_equation(images):
    backbone, tail = drawn(DMWideResNet(10, 1)), drawn(AROSTail(64))
    file = tail.file(backbone)
    assert find_family(file) == "aros"
    ours = load_weights(same_padded_wrn(), backbone.state_dict())
    net = load_weights(NeuralODENet(ours), file).double().eval()
    with torch.no_grad():
        wanted = tail(backbone.features(images))
        torch.testing.assert_close(net(images), wanted, atol=1e-4, rtol=1e-4)
    images.requires_grad_()
    MSP(net).surrogate(images).sum().backward()  # through the steps, not through an adjoint
    assert images.grad.abs().sum() > 0


def test_aros_s_parametrised_layers_have_to_be_plain():
    ours = load_weights(same_padded_wrn(), same_padded_wrn().state_dict())
    file = AROSTail(64).file(nn.Linear(1, 1))
    file["1.fc0.linear.parametrizations.weight.original"] = file.pop("1.fc0.linear.weight")
    with pytest.raises(UserError, match="remove_parametrizations"):
        load_weights(NeuralODENet(ours), file)


# --- what does not fit


@pytest.mark.parametrize("key_map", [None, "deepmind-wrn"])
def test_the_padding_that_no_shape_shows_is_asked_for(key_map):
    file = DMWideResNet(10, 1).state_dict()
    with pytest.raises(UserError, match=r"^padding: .*'same', got 'symmetric'; --net.padding same"):
        load_weights(WideResNet(10, 1), file, key_map)


def test_the_head_of_a_discriminator_is_asked_for():
    file = NonPositive([6, 8, 8], [1, 2, 1], [5], 1, 2).state_dict()
    wrong = ConvNet(**{**ONE_NONPOSITIVE, "nonpositive_head": False})
    with pytest.raises(UserError, match=r"^nonpositive_head: .*--net.nonpositive_head true"):
        load_weights(wrong, file)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_another_network_s_file_is_named_by_its_family(name):
    build, _, prefix = PAIRS[name]
    other: nn.Module = ConvNet(channels=(2,), strides=(1,), hidden=())
    if KEY_MAPS[name].network == "ConvNet":
        other = WideResNet(10, 1)
    with pytest.raises(UserError) as refusal:
        load_weights(other, prefixed(prefix, build()))
    message = str(refusal.value)
    assert "\n" not in message
    assert f"--net {KEY_MAPS[name].network}" in message


def test_missing_and_left_over_keys_and_another_number_of_classes_are_one_line():
    file = dict(Kuangliu().state_dict())
    with pytest.raises(UserError, match=r"the head is of another number of classes: --net\.num_cl"):
        load_weights(ResNet18(num_classes=9), file)
    del file["layer1.0.conv1.weight"]
    file["layer9.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight: .*not in the file"):
        load_weights(ResNet18(), file)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (partial(OutlierClass, small_densenet(10), 0), "outliers: expected a number of classes"),
        (partial(PreActResNet, 19), "depth: expected 18 or 34"),
        (
            partial(PreActResNet, padding="sane"),
            "padding: expected one of 'symmetric', 'same', got 'sane'",
        ),
        (partial(WideResNet, 10, 1, padding="same", norm="none"), "padding: 'same' is for"),
        (partial(NeuralODENet, ConvNet(), steps=0), "steps: expected a number >= 1"),
        (partial(NeuralODENet, ConvNet(), time=0.0), "time: expected a number > 0"),
        (
            partial(Discriminated, ConvNet(), norm="layer"),
            "norm: expected one of 'none', 'batch', got 'layer'",
        ),
        (partial(ResNet18, width=0), "width: expected a number >= 1"),
    ],
)
def test_impossible_settings_name_their_field(build, said):
    with pytest.raises(UserError, match=said):
        build()


@pytest.mark.parametrize(
    "net",
    [
        PreActResNet(activation="silu", padding="same"),
        WideResNet(10, 1, padding="same"),
        ResNet18(width=8),
        NeuralODENet(WideResNet(10, 1), steps=3),
        atd(WideResNet(10, 1)),
        OutlierClass(WideResNet(10, 1), 3),
    ],
    ids=lambda net: type(net).__name__,
)
def test_networks_are_built_again_from_their_description(net):
    from robust_ood.models import describe, rebuild

    images = torch.rand(2, 3, 32, 32, generator=generator(4))
    net = copy.deepcopy(net).eval()
    again = rebuild(describe(net))
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.eval()(images), net(images))


# --- one command


DIGITS = ["-c", "configs/data/digits.yaml", "--limit", "3", "--sanity", "false", "--figures", "false",
          "--attacks", "[{name: pgd, radius: 8/255, steps: 1}]", "--device", "cpu", "--intervals", "false"]  # fmt: skip


def in_atom_s_layout(net: DenseNet) -> dict[str, Tensor]:
    names = {r"(block\d)\.": r"\1.layer.", r"transition(\d)\.(bn|conv)\.": r"trans\1.\g<2>1.",
             r"^bn\.": "bn1.", r"^head\.": "fc."}  # fmt: skip
    state = {}
    for key, value in net.state_dict().items():
        for pattern, new in names.items():
            key = re.sub(pattern, new, key)
        if not key.startswith("normalize."):
            state[key] = value
    return state


def test_a_published_file_is_evaluated_by_one_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    theirs = drawn(small_densenet(11)).float()
    torch.save({"epoch": 100, "state_dict": in_atom_s_layout(theirs)}, tmp_path / "atom.tar")
    output = tmp_path / "out"
    arguments = [*DIGITS, "-c", "configs/published/atom.yaml", "--net.net.depth", "10", "--net.net.growth", "4"]  # fmt: skip
    arguments += ["--detectors", "[outlier-class]", "--checkpoint", str(tmp_path / "atom.tar")]
    assert cli.main(["evaluate", *arguments, "--output", str(output)]) == 0, capsys.readouterr().err
    page = (output / "report.html").read_text()
    assert "A published claim, evaluated again" in page
    assert "shows 2 of the 10 known failures" in page
    assert "one side attacked" in page


def test_atd_s_two_files_are_evaluated_by_one_command(tmp_path, capsys):
    torch.save(DMPreActResNet().state_dict(), tmp_path / "rade.pt")
    torch.save(prefixed("main.", atd_discriminator()), tmp_path / "disc")
    arguments = [*DIGITS, "-c", "configs/published/atd.yaml", "--net.net.path", str(tmp_path / "rade.pt")]  # fmt: skip
    arguments += ["--checkpoint", str(tmp_path / "disc"), "--output", str(tmp_path / "out")]
    arguments += ["--report", "false", "--limit", "1", "--attacks", "[]"]
    assert cli.main(["evaluate", *arguments]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert {row["detector"] for row in rows} == {"discriminator", "msp"}


def test_an_unknown_claim_is_one_line(capsys):
    assert cli.main(["evaluate", *DIGITS, "--published", "atomm", "--checkpoint", "none"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "published: unknown name 'atomm'" in error
    assert "'atom'" in error
