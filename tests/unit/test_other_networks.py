"""Detectors that name a network of their own, and means over networks."""

from __future__ import annotations

import pytest
import torch

from robust_ood import detectors
from robust_ood.detectors import Mean, Resized
from robust_ood.errors import UserError
from robust_ood.models import WideResNet, describe


def small_net(seed: int) -> WideResNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WideResNet(10, 1, num_classes=4).eval()


@pytest.fixture(scope="module")
def evaluated():
    return small_net(0)


@pytest.fixture
def other(tmp_path):
    net = small_net(1)
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    torch.save({"state_dict": state, "network": describe(net)}, tmp_path / "other.pt")
    return net, str(tmp_path / "other.pt")


@pytest.fixture
def images():
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_a_detector_reads_the_network_that_it_names(evaluated, other, images):
    net, path = other
    built = detectors.build_all(
        [
            "msp",
            {"name": "msp", "label": "other", "network": path},
            {"name": "msp", "label": "small", "network": {"checkpoint": path, "size": 8}},
            {"name": "msp", "label": "same, small", "network": {"size": 8}},
            {"name": "pro-msp", "label": "moved", "network": {"checkpoint": path}, "steps": 1},
            {
                "name": "msp",
                "label": "state",
                "network": {
                    "checkpoint": path,
                    "net": {
                        "class_path": "WideResNet",
                        "init_args": {"depth": 10, "width": 1, "num_classes": 4},
                    },
                },
            },
        ],
        evaluated,
    )
    expected = {
        "msp": detectors.MSP(evaluated),
        "other": detectors.MSP(net),
        "small": detectors.MSP(Resized(net, 8)),
        "same, small": detectors.MSP(Resized(evaluated, 8)),
        "moved": detectors.build("pro-msp", net, steps=1),
        "state": detectors.MSP(net),
    }
    for label, detector in expected.items():
        assert torch.equal(built[label](images), detector(images)), label


def test_detectors_that_name_the_same_network_share_it(evaluated, other):
    spec = {"name": "msp", "network": other[1]}
    mean, single = detectors.build_all(
        [{"name": "mean", "scores": ["msp", spec, {**spec, "name": "energy"}]}, spec], evaluated
    ).values()
    assert len(mean.networks) == 2
    assert mean.networks[1] is single.networks[0]
    assert mean.labels == ("msp", "msp-2", "energy")


def test_a_mean_over_networks_is_that_of_standardised_scores(evaluated, other, images):
    net, path = other
    spec = {"name": "msp", "label": "other", "network": {"checkpoint": path, "size": 8}}
    mean = detectors.build("mean", evaluated, scores=["msp", spec])
    mean.fit([(images, torch.arange(12) % 4)])
    expected = torch.zeros(len(images))
    for member in (detectors.MSP(evaluated), detectors.MSP(Resized(net, 8))):
        scores = member.published(images)
        expected += (scores - scores.mean()) / scores.std(correction=0) / 2
    assert torch.allclose(mean(images), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (3, r"network: expected a file of weights, or a mapping, got 3"),
        ({}, r"network\.checkpoint: not given, and neither is net or size"),
        ({"key_map": "x"}, r"network\.checkpoint: not given, and averaged and key_map are about"),
        ("missing.pt", r"network\.checkpoint: no such file: missing\.pt"),
        ({"size": 0}, r"network\.size: expected a number of pixels >= 1, got 0"),
        ({"sizes": 8}, r"network\.sizes: no such setting; did you mean 'size'"),
        ({"net": "WideResNt"}, r"network\.net: unknown name 'WideResNt'; did you mean"),
        ({"net": "WideResNet"}, r"network\.checkpoint: not given, and the weights of WideResNet"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_network_that_is_none_is_refused(evaluated, network, message, nested):
    spec = {"name": "msp", "network": network}
    if nested:
        spec = {"name": "mean", "scores": ["msp", spec]}
    with pytest.raises(UserError, match=f"^detectors\\.{spec['name']}\\.{message}"):
        detectors.build_all([spec], evaluated)


def test_labels_of_members_are_different_ones(evaluated):
    members = [detectors.MSP(evaluated), detectors.Energy(evaluated)]
    assert Mean(members).labels == ("1", "2")
    for labels in (["a"], ["a", "a"]):
        with pytest.raises(UserError, match="labels: expected 2 different ones, got a"):
            Mean(members, labels)
    with pytest.raises(UserError, match=r"scores: 'a' is duplicated"):
        detectors.build(
            "mean",
            evaluated,
            scores=[{"name": "msp", "label": "a"}, {"name": "energy", "label": "a"}],
        )
