"""Heads: the layer whose weights times the features are the logits, and networks without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robust_ood import detectors
from robust_ood.attacks import PGD, lower_score, misclassify
from robust_ood.detectors import KNN, MSP, DeepEnsemble, Energy, Mahalanobis, ReAct
from robust_ood.errors import UserError
from robust_ood.models import (
    ThinResNet,
    count_classes,
    find_head,
    find_layers,
    outputs,
    wrap,
)
from robust_ood.models.probing import channels_of
from robust_ood.regions import Linf

CLASSES = 5
LOGITS_ONLY = ("msp", "msp-t", "energy", "maxlogit", "entropy", "gen", "oe-score", "kl-matching")
LOGITS_ONLY += ("odin", "pro-msp", "pro-ent", "pro-gen")
NEED_HEAD = ("react", "ash-p", "ash-b", "ash-s", "scale", "dice", "vim", "residual", "gradnorm")
NEED_FEATURES = ("knn", "mahalanobis", "relative-mahalanobis")


def seeded(make, *arguments, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments, **settings).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(20) % CLASSES


class Several(nn.Module):
    """Four layers of one width, of which one makes the logits; the others may be called, too."""

    def __init__(self, used: int = 0, called: bool = False, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=bias)
        self.layers = nn.ModuleList(nn.Linear(6, CLASSES, bias=bias) for _ in range(4))
        self.used = used
        self.called = called

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(x)).mean((2, 3))
        logits = self.layers[self.used](features)
        if self.called:
            for layer in self.layers:
                layer(features)
        return logits


class Pooled(nn.Module):
    """Ends with a 1 x 1 convolution that is averaged over pixels."""

    def __init__(self, rectified: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.squeeze = nn.Linear(6, CLASSES)  # registered, and never called
        self.classify = nn.Conv2d(6, CLASSES, 1)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        maps = self.classify(self.body(x))
        if self.rectified:
            maps = maps.relu()
        return maps.mean((2, 3))


class Bare(nn.Module):
    """Has no layer that could be a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 9 * self.conv(x).mean((2, 3))


class LogSoftmax(Several):
    """Gives logarithms of probabilities, as the example networks for MNIST do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).log_softmax(1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("used", [0, 1, 3])
@pytest.mark.parametrize("wrapped", [True, False])
def test_the_layer_that_makes_the_logits_is_found_among_others(used, called, bias, wrapped, images):
    net = seeded(Several, used, called, bias)
    right = net.layers[used]
    assert find_layers(net, (8, 8)).head == f"layers.{used}"
    net = seeded(Several, used, called, bias)  # another, of which nothing is known yet
    right = net.layers[used]
    asked = wrap(net).eval() if wrapped else net
    assert find_head(asked) is right
    result = outputs(asked, images)
    assert result.head is right
    torch.testing.assert_close(right(result.features), result.logits)
    energy = Energy(asked)
    unclipped = ReAct(energy, threshold=1e9)
    torch.testing.assert_close(unclipped(images), energy(images))


def test_an_average_of_the_head_is_not_the_head(images):
    net = seeded(Several, 2, True)
    with torch.no_grad():
        for number in (0, 1, 3):
            net.layers[number].weight.copy_(net.layers[2].weight * 1.001)
            net.layers[number].bias.copy_(net.layers[2].bias)
    assert find_head(net) is net.layers[2]
    assert outputs(net, images).head is net.layers[2]


def test_a_head_in_train_mode_is_tried_in_eval_mode_and_its_modes_stay(images):
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, CLASSES)))
    net.train()
    state = torch.get_rng_state()
    assert outputs(net, images[:, :, :8]).head is net[2]
    torch.set_rng_state(state)
    assert all(module.training for module in net.modules())


def test_a_pooled_convolution_is_a_head(images):
    net = seeded(Pooled)
    for asked in (net, wrap(net, head="classify").eval()):
        result = outputs(asked, images)
        assert result.features.shape == (20, 6)
        torch.testing.assert_close(result.head(result.features), result.logits)
        assert (result.head.in_features, result.head.out_features) == (6, CLASSES)
        energy = Energy(asked)
        torch.testing.assert_close(ReAct(energy, threshold=1e9)(images), energy(images))
    assert "head classify (6 to 5, averaged over pixels, found)" in wrap(net).find_layers((8, 8))
    with torch.no_grad():
        net.classify.weight.mul_(2)  # the head shares the weights
    torch.testing.assert_close(find_head(net).weight, net.classify.weight.flatten(1))


@pytest.mark.parametrize("name", NEED_HEAD + NEED_FEATURES)
def test_every_detector_works_over_a_pooled_convolution(name, images, labels):
    net = seeded(Pooled)
    settings = {"dimensions": 2} if name in ("vim", "residual") else {}
    settings |= {"neighbours": 2} if name == "knn" else {}
    detector = detectors.build(name, net, **settings).fit([(images, labels)])
    assert detector(images).isfinite().all()
    attacked = lower_score(detector, images, PGD(Linf(8 / 255), steps=2))
    assert (detector(attacked) <= detector(images) + 1e-6).all()


@pytest.mark.parametrize("name", LOGITS_ONLY)
@pytest.mark.parametrize("kind", ["bare", "wrapped", "function"])
def test_scores_of_the_logits_need_no_head(name, kind, images, labels):
    net = seeded(Bare)
    given = {"bare": net, "wrapped": wrap(net).eval(), "function": lambda x: net(x)}[kind]
    if name == "msp-t":  # a temperature needs a network that is mostly, not always, right
        labels = (net(images).argmax(1) + (labels == 0)) % CLASSES
    detector = detectors.build(name, given).fit([(images, labels)])
    scores = detector(images)
    attacked = lower_score(detector, images, PGD(Linf(8 / 255), steps=3))
    assert (detector(attacked) <= scores).all()
    assert (detector(attacked) < scores).any()
    # The same logits with a head give the same scores.
    headed = nn.Sequential(net, nn.Linear(CLASSES, CLASSES, bias=False)).eval()
    with torch.no_grad():
        headed[1].weight.copy_(torch.eye(CLASSES))
    expected = detectors.build(name, headed).fit([(images, labels)])(images)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("name", NEED_HEAD + NEED_FEATURES)
@pytest.mark.parametrize("kind", ["bare", "wrapped", "function"])
def test_detectors_say_what_they_miss(name, kind, images):
    net = seeded(Bare)
    given = {"bare": net, "wrapped": wrap(net).eval(), "function": lambda x: net(x)}[kind]
    with pytest.raises(UserError) as caught:
        detectors.build(name, given)
    said = str(caught.value)
    needed = "penultimate features" if name in NEED_FEATURES else "a linear head"
    assert f"needs {needed}; " in said
    assert "has no linear head" in said
    assert "\n" not in said


def test_functions_are_one_network_for_all_detectors_and_are_attacked(images, labels):
    net = seeded(Bare)

    def function(x: Tensor) -> Tensor:
        return net(x)

    assert MSP(function).net is Energy(function).net
    moved = misclassify(function, images, labels, PGD(Linf(8 / 255), steps=3))
    assert (net(moved).argmax(1) == labels).sum() <= (net(images).argmax(1) == labels).sum()
    assert torch.isfinite(DeepEnsemble([function, net])(images)).all()
    for wrong in (3, "net", Bare):
        with pytest.raises(UserError, match=r"net: expected a (torch.nn.)?Module or a function"):
            MSP(wrong)


@pytest.mark.parametrize("make", [LogSoftmax, lambda: Pooled(rectified=True)])
def test_logits_changed_after_the_head_leave_the_features(make, images, labels):
    net = seeded(make)
    result = outputs(net, images)
    assert result.features.shape == (20, 6)
    with pytest.raises(UserError, match=r"^head: the logits of \w+ are not the output of \w+"):
        _ = result.head
    KNN(net, neighbours=2).fit([images])(images)
    Mahalanobis(net).fit([(images, labels)])(images)
    MSP(net)(images)
    with pytest.raises(UserError, match=r"^net: ReAct needs a linear head; the logits of "):
        ReAct(net)


def test_a_named_head_that_does_not_give_the_logits_is_refused_where_it_is_read(images):
    net = wrap(seeded(Several, 0, True), head="layers.2").eval()
    assert outputs(net, images).features.shape == (20, 6)
    with pytest.raises(UserError, match=r"not the output of layers\.2, nor"):
        _ = outputs(net, images).head


def test_a_head_replaced_later_is_found_again(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)).eval()
    assert outputs(net, images).head is net[1]
    net[1] = nn.Linear(192, 3)
    assert outputs(net, images).head is net[1]
    assert count_classes(net, (8, 8)) == 3


# Channels
# ------------------------------------------------------------------------------------------------


class Grey(nn.Module):
    """A convolutional network of one channel that flattens: 28 x 28 alone."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, 2)
        self.fc = nn.Linear(4 * 13 * 13, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).flatten(1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_how_many_channels_a_network_takes(channels):
    assert channels_of(seeded(Grey, channels)) == channels
    assert channels_of(seeded(Grey, channels), (28, 28)) == channels
    assert channels_of(wrap(seeded(Grey, channels))) == channels
    assert channels_of(seeded(ThinResNet, 8, channels=channels)) == channels
    assert channels_of(lambda_network(channels)) == (channels if channels in (1, 3) else None)


def lambda_network(channels: int) -> nn.Module:
    net = seeded(Grey, channels)
    return wrap(lambda x: net(x))


def test_another_number_of_channels_is_one_line():
    net = seeded(Grey)
    said = r"net: Grey takes 1 channel, the images have 3; set data.channels: 1$"
    for act in (
        lambda: count_classes(net, (28, 28)),
        lambda: find_layers(net, (28, 28)),
        lambda: wrap(net).find_layers((28, 28)),
        lambda: MSP(net)(torch.rand(2, 3, 28, 28)),
        lambda: KNN(net).fit([torch.rand(2, 3, 28, 28)]),
    ):
        with pytest.raises(UserError, match=said):
            act()
    assert count_classes(net, (1, 28, 28)) == CLASSES
    assert wrap(net).find_layers((1, 28, 28)).startswith("Grey, fed pixels: head fc (676 to 5")
    assert find_head(net) is net.fc


# Networks that cannot be right
# ------------------------------------------------------------------------------------------------


def test_nan_weights_are_named():
    net = seeded(Several)
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"^net: Several gives NaN .* hold NaN, conv\.weight first"):
        count_classes(net, (8, 8))


def test_labels_of_classes_that_the_network_does_not_have(images):
    net = seeded(Several)
    labels = torch.arange(20) % 10
    with pytest.raises(UserError, match=r"^labels: an image is of class 5, .* gives 5 logits"):
        misclassify(net, images, labels, PGD(Linf(8 / 255), steps=2))
    with pytest.raises(UserError, match=r"^loader: gives an image of class 5"):
        Mahalanobis(net).fit([(images, labels)])


def test_one_image_of_each_class_is_too_few_for_a_covariance(images):
    with pytest.raises(UserError, match=r"^loader: gives one image of each class"):
        Mahalanobis(seeded(Several)).fit([(images[:CLASSES], torch.arange(CLASSES))])
