"""RankWeight: which weights are changed, that they stay as they were, and its mistakes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import detectors
from robust_ood.errors import UserError


class Two(nn.Module):
    """A convolution, a linear layer and a head."""

    feature_layers = ("conv",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.middle = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, 4)`."""
        pooled = F.relu(self.norm(self.conv(images))).mean((2, 3))
        logits: Tensor = self.head(F.relu(self.middle(pooled)))
        return logits


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Two().eval()


@pytest.fixture
def images():
    return torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def pruned(net, *names):
    """Return a copy of the network, its weights changed by a whole decomposition."""
    changed = copy.deepcopy(net)
    for name in names:
        weight = changed.get_submodule(name).weight.data
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        weight.sub_((s[0] * torch.outer(u[:, 0], v[0])).view_as(weight))
    return changed


@pytest.mark.parametrize("names", [("middle",), ("conv",), ("conv", "middle", "head")])
def test_chosen_weights_lose_their_leading_component(net, images, names):
    before = copy.deepcopy(net.state_dict())
    scores = detectors.RankWeight(net, weights=names)(images)
    assert torch.allclose(scores, pruned(net, *names)(images).logsumexp(1), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_default_is_the_last_layer_before_the_head(net, images):
    default = detectors.build("rankweight", net)
    assert default.weights == ("middle",)
    assert torch.equal(default(images), detectors.RankWeight(net, "middle")(images))


def test_with_layers_it_is_both(net, images):
    both = detectors.RankWeight(net, "middle", layers="conv")(images)
    expected = detectors.RankFeat(pruned(net, "middle"), layers="conv")(images)
    assert torch.allclose(both, expected, atol=1e-5)
    assert not torch.allclose(both, detectors.RankWeight(net, "middle")(images), atol=1e-3)


def test_it_follows_weights_that_change(net, images):
    detector = detectors.RankWeight(net)
    net.middle.weight.data.mul_(3)
    assert torch.allclose(detector(images), pruned(net, "middle")(images).logsumexp(1), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "midle"}, "weights: .*midle.*middle"),
        ({"weights": "norm"}, "weights: norm is neither a linear layer nor a convolution"),
        ({"weights": ()}, "weights: expected one or more layers"),
        ({"weights": ("conv", "conv")}, "weights: expected one or more layers without duplicates"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
    ],
)
def test_mistakes_are_named(net, settings, message):
    with pytest.raises(UserError, match=message):
        detectors.build("rankweight", net, **settings)


def test_a_network_of_one_layer_is_refused():
    with pytest.raises(UserError, match=r"weights: .*no linear layer or convolution before"):
        detectors.RankWeight(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
