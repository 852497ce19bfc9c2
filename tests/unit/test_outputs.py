"""`outputs`: one forward pass of any classifier, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_ood.errors import UserError
from robust_ood.models import (
    DenseNet,
    ResNet18,
    ThinResNet,
    WideResNet,
    count_classes,
    find_head,
    outputs,
)

OURS = {
    "densenet": lambda: DenseNet(depth=10, growth=4, num_classes=5),
    "wide_resnet": lambda: WideResNet(depth=10, width=1, num_classes=5),
    "resnet18": lambda: ResNet18(num_classes=5),
    "thin_resnet": lambda: ThinResNet(depth=8, num_classes=5),
}


@pytest.fixture(params=OURS)
def net(request):
    return OURS[request.param]().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def hooks_of(net: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())


class Foreign(nn.Module):
    """A user's own network; its last linear layer in module order is the classifier."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.squeeze = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 5)
        self.broken = broken

    def forward(self, images: Tensor) -> Tensor:
        features = self.squeeze(torch.tanh(self.stem(images)).mean((2, 3)))
        if self.broken:
            raise ArithmeticError("broken on purpose")
        return self.fc(features)


def test_head_of_features_is_the_logits_of_the_network(net, images):
    result = outputs(net, images)
    torch.testing.assert_close(result.logits, net(images))
    assert result.features.shape == (3, net.head.in_features)
    torch.testing.assert_close(
        result.features @ result.head.weight.T + result.head.bias, result.logits
    )
    assert result.head is net.head
    assert result.maps == {}


def test_maps_are_the_outputs_of_the_named_modules(images):
    net = Foreign().eval()
    result = outputs(net, images, ("stem", "squeeze"))
    torch.testing.assert_close(result.maps["stem"], net.stem(images))
    torch.testing.assert_close(result.maps["squeeze"], result.features)
    assert list(result.maps) == ["stem", "squeeze"]


def test_gradients_flow_from_every_part_to_the_images(net, images):
    images = images.requires_grad_()
    result = outputs(net, images, net.feature_layers)
    for part in (result.logits, result.features, *result.maps.values()):
        weights = torch.rand(part.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((part * weights).sum(), images, retain_graph=True)
        assert gradient.flatten(1).abs().sum(1).min() > 0


def test_feature_gradient_equals_that_through_the_logits(images):
    net = Foreign().double()
    images = images.double().requires_grad_()
    result = outputs(net, images)
    (through_features,) = torch.autograd.grad(
        result.features @ result.head.weight[2], images, torch.ones(3).double()
    )
    (through_logits,) = torch.autograd.grad(net(images)[:, 2].sum(), images)
    torch.testing.assert_close(through_features, through_logits)


def test_no_hook_remains(net, images):
    before = hooks_of(net)
    outputs(net, images, net.feature_layers)
    assert hooks_of(net) == before


def test_no_hook_remains_after_the_network_raised(images):
    net = Foreign(broken=True)
    with pytest.raises(ArithmeticError, match="broken on purpose"):
        outputs(net, images, ("stem",))
    assert hooks_of(net) == 0


@pytest.mark.parametrize("layers", [("stm",), ("stem", "nothing_like_it")])
def test_no_hook_remains_after_an_unknown_layer(images, layers):
    net = Foreign()
    with pytest.raises(UserError, match=layers[-1]):
        outputs(net, images, layers)
    assert hooks_of(net) == 0


def test_other_hooks_stay_and_see_one_call(images):
    net, calls = Foreign(), []
    outputs(net, images)  # tries the network once
    handle = net.fc.register_forward_hook(lambda *_: calls.append(1))
    outputs(net, images)
    assert len(calls) == 1
    assert hooks_of(net) == 1
    handle.remove()


def test_unknown_layer_names_the_nearest_one(images):
    with pytest.raises(UserError, match="did you mean 'squeeze'") as caught:
        outputs(Foreign(), images, ("squeze",))
    assert "layers: unknown name 'squeze'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_works_under_inference_mode(net, images):
    with torch.inference_mode():
        result = outputs(net, images, net.feature_layers)
    torch.testing.assert_close(result.logits, net(images))
    assert set(result.maps) == set(net.feature_layers)


def test_works_under_autocast(images):
    net = WideResNet(10, 1, num_classes=5).eval()
    with torch.autocast("cpu", torch.bfloat16):
        result = outputs(net, images, net.feature_layers)
    assert result.logits.dtype == torch.bfloat16
    torch.testing.assert_close(result.logits.float(), net(images), atol=0.1, rtol=0.1)


def test_train_and_eval_flags_stay(images):
    net = WideResNet(10, 1)
    net.group2.eval()
    flags = [part.training for part in net.modules()]
    outputs(net, images, net.feature_layers)
    assert [part.training for part in net.modules()] == flags


def test_head_is_the_attribute_before_the_last_linear_layer_where_no_image_tells():
    net = Foreign(broken=True)
    assert find_head(net) is net.fc
    net.head = net.squeeze
    assert find_head(net) is net.squeeze


def test_head_attribute_that_is_no_linear_layer_is_passed_over():
    net = Foreign()
    net.head = nn.Sequential(nn.ReLU())
    assert find_head(net) is net.fc


def test_our_networks_are_not_searched_for_their_head(net, images, monkeypatch):
    def searched(*_: object, **__: object) -> None:
        raise AssertionError("all modules were listed in a hot loop")

    outputs(net, images)  # the first call may look at a network
    for method in ("modules", "named_modules"):
        monkeypatch.setattr(nn.Module, method, searched)
    assert outputs(net, images, net.feature_layers).head is net.head


def test_network_that_gives_maps_is_told_what_is_expected(images):
    with pytest.raises(UserError, match=r"net: Conv2d gives shape .*; expected logits \(N, K\)"):
        outputs(nn.Conv2d(3, 5, 1), images)


def test_classes_are_counted_by_trying():
    net = WideResNet(10, 1, num_classes=7).train()
    assert count_classes(net, (8, 8)) == 7
    assert all(part.training for part in net.modules())
    assert not any(
        buffer.any() for name, buffer in net.named_buffers() if name.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "cannot take 3 x 8 x 8 images"),
        (nn.Conv2d(3, 4, 1), r"gives shape \(2, 4, 8, 8\) for 2 images; expected logits \(2, K\)"),
    ],
)
def test_network_that_gives_no_logits_for_such_images(net, said):
    with pytest.raises(UserError, match=f"^net: .*{said}"):
        count_classes(net, (8, 8))
