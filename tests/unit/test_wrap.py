"""`wrap`: somebody's classifier behind the contract of pixels in, logits out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import Tensor, nn

from robust_ood import models
from robust_ood.errors import UserError
from robust_ood.models import Wrapped, find_layers, outputs, wrap

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18(weights=None, num_classes=7).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_torchvision_resnet18(theirs, images):
    net = wrap(theirs, MEAN, STD, layers=STAGES).eval()
    standardized = torchvision.transforms.functional.normalize(images, MEAN, STD)
    result = outputs(net, images, net.feature_layers)
    torch.testing.assert_close(result.logits, theirs(standardized))
    torch.testing.assert_close(result.features @ theirs.fc.weight.T + theirs.fc.bias, result.logits)
    assert result.features.shape == (2, 512)
    assert [part.shape[1:] for part in result.maps.values()] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
    ]
    torch.testing.assert_close(list(result.maps.values())[-1].mean((2, 3)), result.features)


def test_timm_network(images):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()
    net = wrap(theirs, MEAN, STD, layers=["layer1", "layer4"]).eval()
    result = outputs(net, images, net.feature_layers)
    torch.testing.assert_close(
        result.features, theirs.forward_head(theirs.forward_features(net.normalize(images)), True)
    )
    torch.testing.assert_close(result.features @ theirs.fc.weight.T + theirs.fc.bias, result.logits)


def test_without_mean_and_std_pixels_reach_the_module_unchanged(theirs, images):
    assert torch.equal(wrap(theirs).eval()(images), theirs(images))


def test_head_is_found_and_named(theirs):
    assert wrap(theirs).head is theirs.fc
    two = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3))
    assert wrap(two).head is two[2]
    assert wrap(two, head="1").head is two[1]


def test_head_replaced_later_is_the_new_one():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    net = wrap(module)
    module[1] = nn.Linear(12, 9)
    assert net.head is module[1]


def test_module_without_linear_layer_says_so_where_its_head_is_read():
    net = wrap(nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(UserError, match="head: Sequential has no linear layer"):
        _ = net.head
    assert "no linear head, scores of the logits alone work" in net.find_layers((8, 8))


@pytest.mark.parametrize(
    "give",
    [
        lambda logits: {"logits": logits, "hidden": logits[:, :1]},
        lambda logits: (logits, None),
        lambda logits: [logits],
        lambda logits: {"out": logits},
        lambda logits: SimpleNamespace(logits=logits),
    ],
)
def test_logits_inside_of_what_a_network_returns_are_taken_out(give, images):
    inner = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 7))
    net = wrap(lambda x: give(inner(x)))
    torch.testing.assert_close(net(images), inner(images))
    assert net.find_layers((64, 64)).startswith("<lambda>, fed pixels")


def test_logits_that_cannot_be_told_from_features_are_refused(images):
    net = wrap(lambda x: (x.flatten(1), x.mean((2, 3))))
    with pytest.raises(UserError, match=r"^net: returns several tensors, .*\(2, 3\)"):
        net(images)


def test_names_are_checked_at_once(theirs):
    with pytest.raises(UserError, match="did you mean 'layer1'"):
        wrap(theirs, layers=["layr1"])
    with pytest.raises(UserError, match="did you mean 'fc'"):
        wrap(theirs, head="fcc")
    with pytest.raises(UserError, match="head: conv1 is a Conv2d"):
        wrap(theirs, head="conv1")


@pytest.mark.parametrize("given", [{"mean": MEAN}, {"std": STD}])
def test_mean_and_std_come_together(theirs, given):
    with pytest.raises(UserError, match="mean and std"):
        wrap(theirs, **given)


def test_wrapped_weights_are_those_of_the_module(theirs):
    net = wrap(theirs, MEAN, STD)
    assert isinstance(net, Wrapped)
    assert {id(parameter) for parameter in net.parameters()} == {
        id(parameter) for parameter in theirs.parameters()
    }
    assert not any(key.startswith("head") for key in net.state_dict())  # the head is saved once


class Staged(nn.Module):
    """A wrapper around stages of which one holds two, a shared ReLU, and a linear layer that is not
    the head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner.relu = nn.ReLU()
        self.inner.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(5, 6, 3, 2, 1), nn.ReLU()),
        )
        self.inner.pool = nn.AdaptiveAvgPool2d(1)
        self.inner.classify = nn.Linear(6, 3)
        self.inner.other = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.inner.relu(self.inner.stages(self.inner.relu(self.inner.stem(x))))
        features = self.inner.pool(maps).flatten(1)
        return self.inner.classify(features) + 0 * self.inner.other(features).sum()


def test_head_and_last_layer_of_each_resolution_are_found():
    net = Staged()
    assert find_layers(net, (8, 8)) == ("inner.classify", ("inner.stages.0", "inner.stages"))
    assert find_layers(wrap(net, MEAN, STD), (8, 12)).layers == (
        "module.inner.stages.0",
        "module.inner.stages",
    )
    assert not any(part._forward_hooks for part in net.modules())
    assert net.training


def test_torchvisions_conventional_layers_are_found(theirs):
    assert find_layers(theirs, (64, 64)) == ("fc", ("relu", *STAGES))


def test_what_was_named_is_kept_and_what_was_not_is_found():
    net = wrap(Staged())
    assert (net.head_name, net.feature_layers) == ("inner.other", ())  # the last that is registered
    words = net.find_layers((8, 8))
    assert (net.head_name, net.feature_layers) == (
        "inner.classify",
        ("module.inner.stages.0", "module.inner.stages"),
    )
    assert words == (
        "Staged, fed pixels: head inner.classify (6 to 3, found); "
        "feature layers inner.stages.0, inner.stages (found)"
    )
    named = wrap(Staged(), MEAN, STD, head="inner.other", layers=["inner.stem"])
    words = named.find_layers((8, 8))
    assert (named.head_name, named.feature_layers) == ("inner.other", ("module.inner.stem",))
    assert (
        "normalised images: head inner.other (6 to 3, given), whose output is not the logits"
        in words
    )
    assert words.endswith("feature layers inner.stem (given)")


class Scaled(Staged):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_logits_that_no_layer_gives_are_said():
    assert find_layers(Scaled(), (8, 8)).head is None
    assert "inner.other (6 to 3, found), whose output is not the logits" in wrap(
        Scaled()
    ).find_layers((8, 8))


def test_images_that_a_network_cannot_take_are_refused():
    with pytest.raises(UserError, match="net: Sequential cannot take 3 x 8 x 8 images"):
        find_layers(nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), (8, 8))


def test_the_former_names_still_work_and_warn():
    with pytest.warns(
        DeprecationWarning, match=r"find_parts .* use robust_ood\.models\.find_layers"
    ):
        assert models.find_parts is find_layers
    with pytest.warns(DeprecationWarning, match=r"use Wrapped\.find_layers"):
        assert "head inner.classify" in wrap(Staged()).find_parts((8, 8))
