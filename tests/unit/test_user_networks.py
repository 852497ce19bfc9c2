"""Networks as users bring them: that flatten with `view`, work in place, or are in train mode."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from robust_ood import detectors, safe_spots
from robust_ood.attacks import (
    PGD,
    Square,
    apgd,
    attack_labels,
    attack_score,
    lower_score,
    misclassify,
    raise_score,
)
from robust_ood.data import Batch
from robust_ood.detectors import MSP, PRO, DeepEnsemble, Energy, GradNorm, Mean
from robust_ood.detectors.sharing import score_images
from robust_ood.evaluation.scoring import Scorer
from robust_ood.inputs import accepted
from robust_ood.models import ResNet18, count_classes, find_layers, wrap
from robust_ood.regions import L2, Linf
from robust_ood.training import ALOE

CLASSES = 4
REGION = Linf(8 / 255)
ATTACKS = {
    "pgd": PGD(REGION, steps=3),
    "l2": PGD(L2(0.5), steps=3),
    "apgd": apgd(REGION, steps=5),
    "square": Square(REGION, queries=20),
}


class Flattening(nn.Module):
    """The convolutional network of the tutorials: it flattens with `view`."""

    def __init__(self, contiguous_first: bool = False) -> None:
        super().__init__()
        self.contiguous_first = contiguous_first
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.contiguous_first:
            x = x.contiguous()
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(x.view(x.size(0), -1))


class InPlace(nn.Module):
    """A network that normalises its images where they lie."""

    def __init__(self, way: str = "sub") -> None:
        super().__init__()
        self.way = way
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "sub":
            x.sub_(0.4).div_(0.2)
        elif self.way == "clamp":
            x.clamp_(0, 1)
        elif self.way == "view":
            x.view(-1).mul_(2)
        else:
            x.data.sub_(0.4)
        return self.fc(self.body(x).flatten(1))


class Modal(nn.Module):
    """A network whose train mode differs: BatchNorm, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6 * 36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.body(x)))


def seeded(make, *arguments) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(6) % CLASSES


def last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("contiguous_first", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_network_that_flattens_with_view_is_attacked_in_any_layout(
    name, contiguous_first, layout, images, labels
):
    net = seeded(Flattening, contiguous_first).to(memory_format=layout)
    attack = ATTACKS[name]
    for given in (images, last(images)):
        clean = MSP(net)(given)
        assert (MSP(net)(lower_score(MSP(net), given, attack)) <= clean).all()
        assert (MSP(net)(raise_score(MSP(net), given, attack)) >= clean).all()
        misclassify(net, given, labels, attack)
    net.to(memory_format=torch.channels_last)  # as an evaluation does after an attack
    score_images({"msp": MSP(net)}, last(images))
    lower_score(MSP(net), images, attack)


@pytest.mark.parametrize(
    "make",
    [
        Energy,
        MSP,
        GradNorm,
        lambda net: PRO(MSP(net)),
        lambda net: detectors.ODIN(net),
        lambda net: Mean([MSP(net), Energy(net)]),
        lambda net: DeepEnsemble([net, copy.deepcopy(net)], sizes=[None, 8]),
        lambda net: detectors.SafeSpot(net, "8/255", steps=1, attack_steps=1),
        lambda net: detectors.KNN(net, neighbours=2),
    ],
)
@pytest.mark.parametrize("kind", [Flattening, InPlace])
def test_every_detector_scores_and_is_attacked_over_it_after_an_evaluation(make, kind, images):
    net = seeded(kind)
    detector = make(net)
    detector.fit([images])
    expected = detector(images.clone()).detach()
    before = images.clone()
    scorer = Scorer("cpu")
    scorer.bring(net, {"it": detector})
    for given in (images, last(images)):
        assert torch.allclose(score_images({"it": detector}, given)["it"], expected, atol=1e-5)
        assert torch.allclose(detector(given).detach(), expected, atol=1e-5)
        attacked = attack_score(detector, given, PGD(REGION, steps=2), 1)
        assert (attacked.images - before).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(images, before)


def test_layers_are_found_and_classes_counted_whatever_the_weights_layout(images):
    net = seeded(Flattening).to(memory_format=torch.channels_last)
    assert count_classes(net, (8, 8)) == CLASSES
    net = seeded(Flattening).to(memory_format=torch.channels_last)
    assert find_layers(net, (8, 8)).head == "fc"


def test_the_networks_own_fault_is_reported_and_its_layout_kept(images):
    net = seeded(Flattening).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MSP(net)(torch.rand(2, 3, 9, 9))
    MSP(net)(images)
    net = seeded(Modal).to(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MSP(net)(torch.rand(2, 3, 9, 9))
    assert net.body[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("search", ["search", "attack"])
@pytest.mark.parametrize("kind", [Flattening, InPlace])
def test_safe_spots_take_it(search, kind, images, labels):
    net = seeded(kind).to(memory_format=torch.channels_last)
    before = images.clone()
    if search == "search":
        moved = safe_spots.search(net, images, 8 / 255, method="pgd", steps=2, labels=labels)
    else:
        moved = safe_spots.attack(net, images, labels, 8 / 255, steps=2)
    assert (moved - before).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", [Flattening, InPlace])
def test_it_is_trained_adversarially(kind, images, labels):
    method = ALOE(seeded(kind).train(), PGD(REGION, steps=2), PGD(REGION, steps=2), 0.5)
    before = images.clone()
    batch = Batch(images, labels, images.clone(), torch.arange(6), 0, 0)
    method.training_step(batch, 0).backward()
    assert all(parameter.grad is not None for parameter in method.net.parameters())
    assert torch.equal(images, before)


@pytest.mark.parametrize("way", ["sub", "clamp", "view", "data"])
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_network_that_works_in_place_changes_no_image_and_stays_in_the_ball(
    way, name, wrapped, images, labels
):
    net = seeded(InPlace, way)
    if wrapped:
        net = wrap(net).eval()
    attack = ATTACKS[name]
    before = images.clone()
    for attacked in (
        attack_score(MSP(net), images, attack, 1),
        attack_score(MSP(net), images, attack, -1),
        attack_labels(net, images, labels, attack),
    ):
        size = attack.region.norm(attacked.images - before)
        assert (size <= attack.region.radius + 1e-5).all()
        assert torch.equal(images, before)
    MSP(net)(images)
    score_images({"msp": MSP(net)}, images)
    assert torch.equal(images, before)


def test_a_network_that_works_in_place_is_still_copied_and_pickled(images):
    net = seeded(InPlace)
    MSP(net)(images)
    before = images.clone()
    for same in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        MSP(same)(images)
        assert torch.equal(images, before)


def test_networks_are_tried_once_and_ours_never(images):
    net = seeded(Flattening)
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    Energy(net)(images)
    assert len(calls) == 3  # for its layout, for its head, and the pass itself
    Energy(net)(images)
    assert len(calls) == 4
    ours = seeded(ResNet18, CLASSES)
    ours.register_forward_pre_hook(lambda *_: calls.append(1))
    Energy(ours)(images)
    assert len(calls) == 5


def test_the_trial_leaves_modes_random_state_and_gradients_alone(images):
    net = seeded(Modal).train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    leaf = images.clone().requires_grad_()
    accepted(leaf, net).sum().backward()
    assert torch.equal(torch.rand(1), expected)
    assert leaf.grad is not None
    assert all(module.training for module in net.modules())
    assert int(net.body[1].num_batches_tracked) == 0


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(
    "make", [MSP, GradNorm, lambda net: PRO(MSP(net)), lambda net: DeepEnsemble([net])]
)
def test_scores_are_of_eval_mode_and_independent_of_the_batch(make, freeze, images):
    net = seeded(Modal)
    detector = make(net)
    expected = detector(images).detach()
    detector.train()
    if freeze:
        net.eval()
        net.drop.train()
    flags = [module.training for module in detector.modules()]
    state = copy.deepcopy(net.state_dict())
    assert torch.equal(detector(images).detach(), expected)
    assert torch.allclose(detector(images[:2]).detach(), expected[:2], atol=1e-5)
    assert [module.training for module in detector.modules()] == flags
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name
