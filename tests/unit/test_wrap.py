"""`wrap`: somebody's classifier behind the contract of pixels in, logits out."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models import Wrapped, outputs, wrap

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
    assert [part.shape[1:] for part in result.maps.values()] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
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


def test_module_without_linear_layer_cannot_be_wrapped():
    with pytest.raises(UserError, match="no linear layer"):
        wrap(nn.Conv2d(3, 5, 1))


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
    assert {id(parameter) for parameter in net.parameters()} == {id(parameter) for parameter in theirs.parameters()}
    assert not any(key.startswith("head") for key in net.state_dict())  # the head is saved once
