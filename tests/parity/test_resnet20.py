"""ResNet-20 against He et al.'s architecture written out, with weights stored as the widespread
public ones are.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.errors import UserError
from robust_ood.models import ThinResNet, load_weights, outputs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEY_MAP = {r"linear\.": "head."}


def public_weights(blocks: int = 3) -> dict[str, Tensor]:
    """Draw weights under the public file's names: `module.` before each, `linear` last, no
    BatchNorm counters.
    """
    draws = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def convolution(name: str, inputs: int, channels: int) -> None:
        state[f"module.{name}.weight"] = (
            torch.randn(channels, inputs, 3, 3, generator=draws) * (2 / 9 / channels) ** 0.5
        )

    def norm(name: str, channels: int) -> None:
        state[f"module.{name}.weight"] = torch.rand(channels, generator=draws) + 0.5
        state[f"module.{name}.bias"] = torch.rand(channels, generator=draws) - 0.5
        state[f"module.{name}.running_mean"] = torch.rand(channels, generator=draws) - 0.5
        state[f"module.{name}.running_var"] = torch.rand(channels, generator=draws) + 0.5

    convolution("conv1", 3, 16)
    norm("bn1", 16)
    inputs = 16
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(blocks):
            for number in (1, 2):
                convolution(f"layer{stage}.{block}.conv{number}", inputs, channels)
                norm(f"layer{stage}.{block}.bn{number}", channels)
                inputs = channels
    state["module.linear.weight"] = torch.randn(10, 64, generator=draws)
    state["module.linear.bias"] = torch.randn(10, generator=draws)
    return state


def written_out(images: Tensor, weights: dict[str, Tensor], blocks: int = 3) -> Tensor:
    state = {key.removeprefix("module."): value.double() for key, value in weights.items()}

    def batch_norm(maps: Tensor, name: str) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (state[f"{name}.{part}"].view(1, -1, 1, 1) for part in parts)
        return (maps - mean) / (variance + 1e-5).sqrt() * scale + shift

    maps = (images - torch.tensor(MEAN).double().view(1, 3, 1, 1)) / torch.tensor(
        STD
    ).double().view(1, 3, 1, 1)
    maps = batch_norm(F.conv2d(maps, state["conv1.weight"], padding=1), "bn1").clamp_min(0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = F.conv2d(maps, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = batch_norm(inner, f"{name}.bn1").clamp_min(0)
            inner = batch_norm(
                F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2"
            )
            if stride == 2:
                maps = torch.from_numpy(option_a(maps.numpy()))
            maps = (maps + inner).clamp_min(0)
    return maps.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def option_a(maps: np.ndarray) -> np.ndarray:
    """Every second pixel, and as many channels again, all zero: half of them before and half
    after.
    """
    count, channels, height, width = maps.shape
    result = np.zeros((count, 2 * channels, -(-height // 2), -(-width // 2)), maps.dtype)
    for channel in range(channels):
        for row in range(0, height, 2):
            for column in range(0, width, 2):
                result[:, channel + channels // 2, row // 2, column // 2] = maps[
                    :, channel, row, column
                ]
    return result


def pictures(size: int = 12) -> Tensor:
    return torch.rand(
        2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


@pytest.mark.parametrize("size", [12, 13])
def test_public_weights_load_and_give_the_logits_written_out(tmp_path: Path, size: int):
    torch.save({"state_dict": public_weights(), "best_prec1": 91.7}, tmp_path / "resnet20.th")
    net = load_weights(
        ThinResNet(20, mean=MEAN, std=STD).double(), tmp_path / "resnet20.th", KEY_MAP
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            net(pictures(size)), written_out(pictures(size), public_weights())
        )


def test_public_weights_do_not_load_under_their_own_names_and_change_nothing():
    net = ThinResNet(20, mean=MEAN, std=STD)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"linear\.weight|head\.weight"):
        load_weights(net, public_weights(), key_map={})
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("size", [6, 7])
def test_option_a_shortcut_against_numpy(size: int):
    shortcut = ThinResNet(8).layer2[0].shortcut
    maps = torch.rand(2, 16, size, size, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(shortcut(maps).numpy(), option_a(maps.numpy()))


def test_features_and_head_make_the_logits():
    net = load_weights(
        ThinResNet(20, mean=MEAN, std=STD).double(), public_weights(), KEY_MAP
    ).eval()
    result = outputs(net, pictures(), net.feature_layers)
    torch.testing.assert_close(
        result.features @ result.head.weight.T + result.head.bias, result.logits
    )
    torch.testing.assert_close(result.maps["layer3"].mean((2, 3)), result.features)
    assert [tuple(result.maps[name].shape[1:]) for name in net.feature_layers] == [
        (16, 12, 12),
        (32, 6, 6),
        (64, 3, 3),
    ]
