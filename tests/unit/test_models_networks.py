"""The networks against published sizes and against forward passes written out from their papers in
float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models import (
    DenseNet,
    Normalize,
    ResNet18,
    ThinResNet,
    WideResNet,
    describe,
    outputs,
    rebuild,
)

SMALL = {
    "densenet": lambda: DenseNet(depth=10, growth=4, num_classes=5),
    "densenet_plain": lambda: DenseNet(depth=7, growth=4, bottleneck=False, num_classes=5),
    "wide_resnet": lambda: WideResNet(depth=10, width=1, num_classes=5),
    "wide_resnet_16_2": lambda: WideResNet(depth=16, width=2, num_classes=5),
    "resnet18": lambda: ResNet18(num_classes=5),
    "thin_resnet": lambda: ThinResNet(depth=8, num_classes=5),
}


@pytest.fixture(params=SMALL)
def net(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unsettled(SMALL[request.param]())


def unsettled(net: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network in eval mode with random BatchNorm statistics, so that no layer is the
    identity.
    """
    draws = torch.Generator().manual_seed(seed)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values, low, high in (
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.5, 0.5),
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 2.0),
            ):
                values.copy_(torch.rand(values.shape, generator=draws) * (high - low) + low)
    return net.eval()


def pictures(count: int = 3, size: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(
        count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)


@pytest.mark.parametrize(
    ("build", "published"),
    [
        pytest.param(lambda: DenseNet(100, 12), 769_162, id="DenseNet-BC-100-12"),
        pytest.param(lambda: WideResNet(28, 10), 36_479_194, id="WRN-28-10"),
        pytest.param(lambda: WideResNet(34, 10), 46_160_474, id="WRN-34-10"),
        pytest.param(lambda: WideResNet(40, 2), 2_243_546, id="WRN-40-2"),
        pytest.param(lambda: ResNet18(), 11_173_962, id="ResNet-18"),
        pytest.param(lambda: ThinResNet(20), 269_722, id="ResNet-20 (0.27M)"),
        pytest.param(lambda: ThinResNet(32), 464_154, id="ResNet-32 (0.46M)"),
        pytest.param(lambda: ThinResNet(44), 658_586, id="ResNet-44 (0.66M)"),
        pytest.param(lambda: ThinResNet(56), 853_018, id="ResNet-56 (0.85M)"),
    ],
)
def test_number_of_parameters_is_the_published_one(build, published):
    with torch.device("meta"):  # counted, not allocated
        parameters = build().parameters()
    assert sum(parameter.numel() for parameter in parameters) == published


@pytest.mark.parametrize("size", [8, 13, 32])
def test_any_image_size_gives_one_row_of_logits_an_image(net, size):
    assert net(pictures(2, size)).shape == (2, 5)


def test_feature_layers_shrink_towards_the_head(net):
    result = outputs(net, pictures(2, 16), net.feature_layers)
    sides = [result.maps[name].shape[-1] for name in net.feature_layers]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] < sides[0] <= 16
    assert result.maps[net.feature_layers[-1]].shape[0] == 2


def test_densenet_maps_are_those_of_the_aloe_paper_and_the_last_one_pools_to_the_features():
    net = unsettled(DenseNet(depth=10, growth=4))
    result = outputs(net, pictures(2, 16), net.feature_layers)
    shapes = [tuple(result.maps[name].shape[1:]) for name in net.feature_layers]
    # 2k channels, then (2k + k) / 2 after the first transition, and so on; the last block ends in a
    # ReLU
    assert shapes == [(8, 16, 16), (6, 8, 8), (5, 4, 4), (9, 4, 4)]
    last = result.maps[net.feature_layers[-1]]
    assert (last >= 0).all()
    torch.testing.assert_close(last.mean((2, 3)), result.features)


def test_each_image_is_scored_on_its_own_in_eval_mode(net):
    net, images = net.double(), pictures(4, dtype=torch.float64)
    together = net(images)
    alone = torch.cat([net(image[None]) for image in images.flip(0)]).flip(0)
    torch.testing.assert_close(together, alone)


def test_channels_last_gives_the_same_logits(net):
    images = pictures(dtype=torch.float64)
    expected = net.double()(images)
    laid_out = net.to(memory_format=torch.channels_last)(
        images.to(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(laid_out, expected)


def test_network_sees_pixels_through_its_own_mean_and_std():
    images = pictures()
    plain = unsettled(WideResNet(10, 1, mean=(0.0,) * 3, std=(1.0,) * 3))
    shifted = unsettled(WideResNet(10, 1, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2)))
    shifted.load_state_dict(
        {k: v for k, v in plain.state_dict().items() if "normalize" not in k}, strict=False
    )
    by_hand = images - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    by_hand = by_hand / torch.tensor([0.5, 0.25, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(shifted(images), plain(by_hand))


@pytest.mark.parametrize("kind", [DenseNet, WideResNet, ResNet18, ThinResNet])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_any_number_of_channels(kind, channels):
    depth = {
        DenseNet: {"depth": 10},
        WideResNet: {"depth": 10, "width": 1},
        ThinResNet: {"depth": 8},
    }
    net = kind(**depth.get(kind, {}), num_classes=4, channels=channels).eval()
    images = torch.rand(2, channels, 8, 8)
    assert net(images).shape == (2, 4)
    again = rebuild(describe(net)).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images), net(images))
    assert "channels" not in net.settings  # the length of the mean says it, as in old checkpoints
    grey = kind(**depth.get(kind, {}), mean=(0.1,), std=(0.3,))
    assert grey(images[:, :1]).shape == (2, 10)
    assert grey.normalize.mean.flatten().tolist() == pytest.approx([0.1])
    for wrong in (
        {"channels": 0},
        {"channels": 1.5},
        {"channels": 2, "mean": (0.1,), "std": (0.3,)},
    ):
        with pytest.raises(UserError, match=r"^(channels|mean and std): "):
            kind(**depth.get(kind, {}), **wrong)


def test_default_normalisation_is_that_of_the_reference_code():
    first = DenseNet(10, 4).normalize
    assert isinstance(first, Normalize)
    np.testing.assert_allclose(first.mean.flatten().numpy() * 255, [125.3, 123.0, 113.9], rtol=1e-6)
    np.testing.assert_allclose(first.std.flatten().numpy() * 255, [63.0, 62.1, 66.7], rtol=1e-6)


def test_convolutions_start_from_he_distribution():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = WideResNet(10, 4)
    for name, part in net.named_modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 20_000:
            expected = math.sqrt(2 / (part.kernel_size[0] ** 2 * part.out_channels))
            assert float(part.weight.detach().std()) == pytest.approx(expected, rel=0.03), name
    assert not net.head.bias.any()


@pytest.mark.parametrize(
    "build", [lambda: WideResNet(10, 1, dropout=0.5), lambda: DenseNet(10, 4, dropout=0.5)]
)
def test_dropout_acts_in_train_mode_only(build):
    net, images = build(), pictures()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(net.train()(images), net(images))
        assert torch.equal(net.eval()(images), net(images))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DenseNet(depth=99), "depth: 99"),
        (lambda: DenseNet(depth=4), "depth: 4"),
        (lambda: DenseNet(depth=12, bottleneck=False), "depth: 12"),
        (lambda: DenseNet(reduction=0.0), "reduction: expected .* got 0.0"),
        (lambda: DenseNet(reduction=1.5), "reduction: expected .* got 1.5"),
        (lambda: WideResNet(depth=30), "depth: 30"),
        (lambda: WideResNet(depth=4), "depth: 4"),
        (lambda: ThinResNet(depth=18), "depth: 18"),
        (lambda: ThinResNet(depth=2), "depth: 2"),
    ],
)
def test_impossible_settings_are_named_in_one_line(build, message):
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


# Forward passes written from the papers on a bare state dict, in float64. They share no code with
# the networks.


def batch_norm(maps: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    mean, variance, scale, shift = (
        state[f"{name}.{part}"].view(1, -1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (maps - mean) / (variance + 1e-5).sqrt() * scale + shift


def normalized(images: Tensor, state: dict[str, Tensor]) -> Tensor:
    return (images - state["normalize.mean"]) / state["normalize.std"]


def classified(maps: Tensor, state: dict[str, Tensor]) -> Tensor:
    return maps.flatten(2).sum(2) / maps[0, 0].numel() @ state["head.weight"].T + state["head.bias"]


def states(net: nn.Module) -> dict[str, Tensor]:
    return {
        key: value.double() if value.is_floating_point() else value
        for key, value in net.state_dict().items()
    }


def test_densenet_bc_equals_the_paper_written_out():
    net = unsettled(DenseNet(depth=16, growth=4, num_classes=5)).double()
    images, state = pictures(2, dtype=torch.float64), states(net)
    maps = F.conv2d(normalized(images, state), state["conv1.weight"], padding=1)
    for block in (1, 2, 3):
        earlier = [maps]
        for layer in range(2):
            name = f"block{block}.{layer}"
            everything = torch.cat(earlier, 1)  # oldest first
            inner = F.conv2d(
                batch_norm(everything, state, f"{name}.bn1").clamp_min(0),
                state[f"{name}.conv1.weight"],
            )
            inner = batch_norm(inner, state, f"{name}.bn2").clamp_min(0)
            earlier.append(F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1))
        maps = torch.cat(earlier, 1)
        if block < 3:
            name = f"transition{block}"
            maps = F.conv2d(
                batch_norm(maps, state, f"{name}.bn").clamp_min(0), state[f"{name}.conv.weight"]
            )
            assert maps.shape[1] == sum(part.shape[1] for part in earlier) // 2
            maps = maps.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    maps = batch_norm(maps, state, "bn").clamp_min(0)
    torch.testing.assert_close(net(images), classified(maps, state))


def test_wide_resnet_equals_the_paper_written_out():
    net = unsettled(WideResNet(depth=16, width=2, num_classes=5)).double()
    images, state = pictures(2, dtype=torch.float64), states(net)
    maps = F.conv2d(normalized(images, state), state["conv1.weight"], padding=1)
    for group in (1, 2, 3):
        for block in range(2):
            name, stride = f"group{group}.{block}", 2 if group > 1 and block == 0 else 1
            active = batch_norm(maps, state, f"{name}.bn1").clamp_min(0)
            inner = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = batch_norm(inner, state, f"{name}.bn2").clamp_min(0)
            inner = F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1)
            if block == 0:  # the width changes
                maps = F.conv2d(active, state[f"{name}.shortcut.weight"], stride=stride)
            maps = maps + inner
    torch.testing.assert_close(
        net(images), classified(batch_norm(maps, state, "bn").clamp_min(0), state)
    )


def test_resnet18_equals_the_paper_written_out():
    net = unsettled(ResNet18(num_classes=5)).double()
    images, state = pictures(2, dtype=torch.float64), states(net)
    maps = F.conv2d(normalized(images, state), state["conv1.weight"], padding=1)
    maps = batch_norm(maps, state, "bn1").clamp_min(0)
    for stage in (1, 2, 3, 4):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = F.conv2d(maps, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = batch_norm(inner, state, f"{name}.bn1").clamp_min(0)
            inner = batch_norm(
                F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1), state, f"{name}.bn2"
            )
            if stride == 2:
                maps = F.conv2d(maps, state[f"{name}.shortcut.0.weight"], stride=2)
                maps = batch_norm(maps, state, f"{name}.shortcut.1")
            maps = (maps + inner).clamp_min(0)
    torch.testing.assert_close(net(images), classified(maps, state))


def test_wide_resnet_equals_another_library_with_the_same_weights():
    other_library = pytest.importorskip("pytorch_ood.model")
    theirs = unsettled(other_library.WideResNet(num_classes=5, depth=16, widen_factor=2))
    ours = WideResNet(16, 2, num_classes=5, mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    state = ours.state_dict()
    for key, value in theirs.state_dict().items():
        key = (
            key.replace("block", "group")
            .replace(".layer.", ".")
            .replace("convShortcut", "shortcut")
        )
        key = key.replace("fc.", "head.")
        state["bn." + key.removeprefix("bn1.") if key.startswith("bn1.") else key] = value
    ours.load_state_dict(state)
    images = pictures(2, 32)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)
