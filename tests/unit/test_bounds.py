"""Interval bounds: exact for affine networks and at radius 0, and never passed by any image of the
ball, sampled or attacked, for every layer and function that they know.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust_ood import Linf, bounds, minimize
from robust_ood.bounds.interval import Interval
from robust_ood.bounds.rules import (
    _LOWEST_FUNCTIONS,
    _LOWEST_GELU,
    _LOWEST_LAYERS,
    FUNCTIONS,
    LAYERS,
    METHODS,
)
from robust_ood.bounds.trace import bound
from robust_ood.detectors import MSP, Energy, Entropy, MaxLogit
from robust_ood.errors import UserError
from robust_ood.models import (
    ConvNet,
    DenseNet,
    Gated,
    MixtureRatio,
    Normalize,
    ResNet18,
    ThinResNet,
    WideResNet,
    find_head,
    wrap,
)
from robust_ood.models.convnet import NonPositiveLinear

SLACK = 1e-9  # float64
SHAPE = (3, 6, 6)


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network random weights and running statistics, in float64 and eval mode."""
    draws = torch.Generator().manual_seed(seed)
    for layer in net.modules():
        for parameter in layer.parameters(recurse=False):
            parameter.data = torch.randn(parameter.shape, generator=draws) * 0.5
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=draws))
            layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=draws) + 0.3)
    return net.double().eval()


def corners(images: torch.Tensor, radius: float, seed: int, count: int = 8) -> list[torch.Tensor]:
    """Return images of the ball: the clean ones, random points, and random corners."""
    draws = torch.Generator().manual_seed(seed)
    points = [images]
    for _ in range(count):
        noise = torch.rand(images.shape, generator=draws, dtype=images.dtype) * 2 - 1
        points += [images + radius * noise, images + radius * noise.sign()]
    return [point.clamp(0, 1) for point in points]


class Then(nn.Module):
    """A function of the images, flattened."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, images):
        return self.function(images, *self.layers).flatten(1)


def shifted(images):
    return images * 4 - 2


MADE = {
    nn.Softplus: lambda: nn.Softplus(2.0),
    nn.LeakyReLU: lambda: nn.LeakyReLU(0.2),
    nn.MaxPool2d: lambda: nn.MaxPool2d(3, 2, 1),
    nn.AvgPool2d: lambda: nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d: lambda: nn.AdaptiveAvgPool2d(2),
    nn.AdaptiveMaxPool2d: lambda: nn.AdaptiveMaxPool2d(2),
    nn.Unflatten: lambda: nn.Unflatten(2, (2, 3)),
    nn.ZeroPad2d: lambda: nn.ZeroPad2d(1),
    nn.ConstantPad2d: lambda: nn.ConstantPad2d(1, 0.3),
    nn.ReflectionPad2d: lambda: nn.ReflectionPad2d(1),
    nn.ReplicationPad2d: lambda: nn.ReplicationPad2d(1),
    nn.PixelShuffle: lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)),
    nn.ChannelShuffle: lambda: nn.ChannelShuffle(3),
    nn.Linear: lambda: nn.Sequential(nn.Flatten(), nn.Linear(108, 5)),
    nn.Conv2d: lambda: nn.Conv2d(3, 4, 3, 2, 1, padding_mode="reflect"),
    nn.Conv3d: lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 2)),
    nn.BatchNorm2d: lambda: nn.BatchNorm2d(3),
    nn.BatchNorm1d: lambda: nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(3)),
    nn.BatchNorm3d: lambda: nn.Sequential(nn.Unflatten(1, (3, 1)), nn.BatchNorm3d(3)),
    nn.Conv1d: lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 2, 4)),
    nn.GELU: lambda: nn.GELU("tanh"),
    Normalize: lambda: Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    **{
        kind: (lambda kind=kind: nn.Sequential(nn.Flatten(2), kind(2)))
        for kind in (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d)
    },
    **{
        kind: (lambda kind=kind: nn.Sequential(nn.Unflatten(1, (1, 3)), kind(2)))
        for kind in (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)
    },
    nn.Dropout1d: lambda: nn.Sequential(nn.Flatten(2), nn.Dropout1d()),
}


def layer_of(kind):
    """Return a layer of a kind, behind pixels spread over both signs."""
    made = MADE.get(kind, kind)()
    return Then(lambda images, layer: layer(shifted(images)), made)


CALLS = {
    F.linear: lambda x, layer: F.linear(x.flatten(1), layer.weight, layer.bias),
    F.conv2d: lambda x, layer: F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1),
    F.dropout: lambda x: F.dropout(x, 0.5, False),
    F.dropout2d: lambda x: F.dropout2d(x, 0.5, False),
    F.leaky_relu: lambda x: F.leaky_relu(x, 0.1),
    F.max_pool2d: lambda x: F.max_pool2d(x, 2),
    F.avg_pool2d: lambda x: F.avg_pool2d(x, 3, 1),
    F.adaptive_avg_pool2d: lambda x: F.adaptive_avg_pool2d(x, 2),
    F.adaptive_max_pool2d: lambda x: F.adaptive_max_pool2d(x, 2),
    F.max_pool1d: lambda x: F.max_pool1d(x.flatten(2), 2),
    F.avg_pool1d: lambda x: F.avg_pool1d(x.flatten(2), 2),
    F.adaptive_avg_pool1d: lambda x: F.adaptive_avg_pool1d(x.flatten(2), 2),
    F.pad: lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)),
    torch.clamp: lambda x: torch.clamp(x, -0.5, 0.7),
    torch.maximum: lambda x: torch.maximum(x, -x),
    torch.minimum: lambda x: torch.minimum(x, -x),
    torch.add: lambda x: torch.add(x, torch.relu(x), alpha=2),
    torch.mean: lambda x: torch.mean(x, (2, 3)),
    torch.sum: lambda x: torch.sum(x, 1),
    torch.amax: lambda x: torch.amax(x, 1),
    torch.amin: lambda x: torch.amin(x, 1),
    torch.cat: lambda x: torch.cat([x, -x], 1),
    torch.stack: lambda x: torch.stack([x, torch.relu(x)], 1),
    torch.flatten: lambda x: torch.flatten(x, 1),
    torch.reshape: lambda x: torch.reshape(x, (x.shape[0], -1)),
    torch.permute: lambda x: torch.permute(x, (0, 2, 3, 1)),
    torch.transpose: lambda x: torch.transpose(x, 1, 2),
    torch.squeeze: lambda x: torch.squeeze(x, 1),
    torch.unsqueeze: lambda x: torch.unsqueeze(x, 1),
    torch.sub: lambda x: torch.sub(torch.relu(x), x),
    torch.mul: lambda x: torch.mul(x, torch.tanh(x)),
    torch.div: lambda x: torch.div(x, -3.0),
    F.gelu: lambda x: F.gelu(x, approximate="tanh"),
}


def added(images):
    images += torch.relu(images)
    return images


OPERATORS = {
    "add": lambda x: x + torch.relu(x),
    "iadd": added,
    "sub": lambda x: 1 - x - x.relu(),
    "mul": lambda x: x * -2 + x * x.relu(),
    "truediv": lambda x: x / torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1),
    "neg": lambda x: -x,
    "getitem": lambda x: x[:, 1:, ::2],
}
METHOD_ARGUMENTS = {
    "clamp": (-0.3, 0.4), "clamp_": (-0.3, 0.4), "add": (1.0,), "add_": (1.0,), "mean": ((2, 3),),
    "sum": (1,), "amax": (1,), "amin": (1,), "view": (4, -1), "reshape": (4, -1), "flatten": (1,),
    "permute": (0, 2, 1, 3), "transpose": (1, 2), "unsqueeze": (1,), "expand": (4, 3, 6, 6),
}  # fmt: skip


def function_net(function):
    name = getattr(function, "__name__", "")
    if function in CALLS:
        call = CALLS[function]
    else:
        call = OPERATORS.get(name.strip("_"), function) if name in OPERATORS else function
    layers = []
    if function is F.linear:
        layers = [nn.Linear(108, 5)]
    if function is F.conv2d:
        layers = [nn.Conv2d(3, 4, 3)]
    return Then(lambda images, *more: call(shifted(images), *more), *layers)


def method_net(name):
    arguments = METHOD_ARGUMENTS.get(name, ())
    return Then(lambda images: getattr(shifted(images), name)(*arguments))


CASES = [
    *(pytest.param(lambda kind=kind: layer_of(kind), id=kind.__name__) for kind in LAYERS),
    *(
        pytest.param(lambda made=made: function_net(made), id=f"function {index} {made.__name__}")
        for index, made in enumerate(FUNCTIONS)
    ),
    *(pytest.param(lambda name=name: method_net(name), id=f"method {name}") for name in METHODS),
]


@pytest.mark.parametrize("make", CASES)
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000), radius=st.sampled_from([0.0, 1e-3, 0.05, 0.4, 1.0]))
def test_every_layer_and_function_stays_within_its_bounds(make, seed, radius):
    net = randomised(make(), seed)
    images = torch.rand((4, *SHAPE), generator=torch.Generator().manual_seed(seed)).double()
    found = bounds.logit_bounds(net, images, radius)
    assert (found.lower <= found.upper).all()
    for point in corners(images, radius, seed, count=3):
        values = net(point)
        assert (values >= found.lower - SLACK).all()
        assert (values <= found.upper + SLACK).all()
    if radius == 0:
        assert torch.equal(found.lower, found.upper)
        torch.testing.assert_close(found.lower, net(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "lowest"),
    [
        *((kind(), point) for kind, point in _LOWEST_LAYERS.items()),
        *_LOWEST_FUNCTIONS.items(),
        *((nn.GELU(name), point) for name, point in _LOWEST_GELU.items()),
    ],
)
def test_the_lowest_points_are_where_the_functions_turn(function, lowest):
    grid = torch.linspace(-8, 4, 20_001, dtype=torch.float64)
    point = torch.tensor([lowest], dtype=torch.float64)
    assert (function(point) <= function(grid) + 1e-15).all()
    below = function(grid[grid < lowest])
    above = function(grid[grid > lowest])
    assert (below.diff() <= 1e-12).all()
    assert (above.diff() >= -1e-12).all()


def small_networks() -> dict[str, nn.Module]:
    return {
        "WideResNet": WideResNet(10, 1, 4, dropout=0.3),
        "DenseNet": DenseNet(10, 4, num_classes=4, dropout=0.2),
        "DenseNet without bottlenecks": DenseNet(7, 4, bottleneck=False, num_classes=4),
        "ThinResNet": ThinResNet(8, 4),
        "ConvNet": ConvNet((4, 6), (1, 2), 2, (8,), 4, image_size=8),
        "wrapped": wrap(
            nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 4)
            ),
            (0.5, 0.5, 0.5),
            (0.2, 0.2, 0.2),
        ),
    }


@pytest.fixture(scope="module", params=small_networks())
def network(request):
    net = randomised(small_networks()[request.param])
    head = find_head(net)
    with torch.no_grad():  # probabilities that do not saturate
        spread = net(images8()).std()
        head.weight /= spread
        head.bias /= spread
    return net


def images8(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)).double()


def gap(logits: torch.Tensor) -> torch.Tensor:
    return logits.amax(1) - logits.amin(1)


SCORES = {
    "msp": (lambda z: z.softmax(1).amax(1), bounds.msp_lower, bounds.msp_upper),
    "energy": (lambda z: z.logsumexp(1), bounds.energy_lower, bounds.energy_upper),
    "gap": (gap, None, bounds.logit_gap_upper),
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("radius", [0.002, 0.03])
def test_no_attack_passes_the_bound_of_a_score(network, score, radius):
    value, lower, upper = SCORES[score]
    images = images8()
    for sign, limit in ((1, lower), (-1, upper)):
        if limit is None:
            continue
        attacked = minimize(
            lambda x, sign=sign: sign * value(network(x)),
            images, Linf(radius), steps=15, step_size=radius / 4,
        )  # fmt: skip
        worst = value(network(attacked.images))
        assert (sign * worst >= sign * limit(network, images, radius) - SLACK).all()


def test_radius_zero_gives_the_score_itself(network):
    images = images8()
    logits = network(images)
    for value, lower, upper in SCORES.values():
        for limit in (lower, upper):
            if limit is not None:
                torch.testing.assert_close(limit(network, images, 0), value(logits))
    found = bounds.logit_bounds(network, images, 0)
    torch.testing.assert_close(found.lower, logits)
    torch.testing.assert_close(found.upper, logits)


def test_a_resnet18_has_bounds():
    net = ResNet18(4).eval()
    found = bounds.logit_bounds(net, images8(1).float(), 0)
    torch.testing.assert_close(found.upper, net(images8(1).float()), rtol=1e-4, atol=1e-4)


def test_bounds_of_an_affine_network_are_its_optima():
    net = randomised(
        nn.Sequential(Normalize((0.5,) * 3, (0.3,) * 3), nn.Flatten(), nn.Linear(108, 4))
    )
    images = torch.rand((5, *SHAPE), dtype=torch.float64)
    radius = 0.2
    weight = net[2].weight / 0.3  # (K, D)
    lower = (images - radius).clamp(0, 1).flatten(1)
    upper = (images + radius).clamp(0, 1).flatten(1)
    for first in range(4):
        for second in range(4):
            row = weight[first] - weight[second]
            corner = torch.where(row > 0, upper, lower).view(images.shape)
            logits = net(corner)
            best = logits[:, first] - logits[:, second]
            found = bounds.logit_differences_upper(net, images, radius)[:, first, second]
            torch.testing.assert_close(found, best, rtol=1e-9, atol=1e-9)
        corner = torch.where(weight[first] > 0, upper, lower).view(images.shape)
        found = bounds.logit_bounds(net, images, radius).upper[:, first]
        torch.testing.assert_close(found, net(corner)[:, first], rtol=1e-9, atol=1e-9)


def test_eliding_the_last_layer_is_tighter_than_subtracting_bounds(network):
    found = bounds.logit_bounds(network, images8(), 0.02)
    apart = found.upper[:, :, None] - found.lower[:, None, :]
    elided = bounds.logit_differences_upper(network, images8(), 0.02)
    assert (elided <= apart + SLACK).all()
    assert elided.sum() < apart.sum()
    assert torch.equal(elided.diagonal(dim1=1, dim2=2), torch.zeros(3, 4, dtype=torch.float64))


def test_detectors_scores_have_bounds(network):
    images = images8()
    for detector in (MSP(network), MSP(network, 2.0), Energy(network, 0.5), MaxLogit(network)):
        clean = detector(images)
        at_zero = bounds.score_bounds(detector, images, 0)
        torch.testing.assert_close(at_zero.upper.float(), clean.float())
        torch.testing.assert_close(at_zero.lower.float(), clean.float())
        found = bounds.score_bounds(detector, images, 0.02)
        assert (found.lower < clean).all()
        assert (found.upper > clean).all()
    with pytest.raises(UserError, match="Entropy has no interval bounds"):
        bounds.score_bounds(Entropy(network), images, 0.1)


def test_modes_and_weights_are_left_as_they_are_and_gradients_reach_them(network):
    network.train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    bounds.logit_gap_upper(network, images8(), 0.01).sum().backward()
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert any(bool(parameter.grad.abs().sum() > 0) for parameter in network.parameters())
    network.zero_grad()
    network.eval()


class Own(nn.Module):
    """A user's network of a function."""

    def __init__(self, function, layer=None):
        super().__init__()
        self.function = function
        self.layer = layer
        self.head = nn.Linear(108, 3)

    def forward(self, images):
        return self.head(self.function(self, images).flatten(1))


class Louder(nn.ReLU):
    """A subclass that is not the layer it is of."""

    def forward(self, images):
        return -torch.square(super().forward(images)).softmax(1)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Own(lambda net, x: net.layer(x), nn.GroupNorm(1, 3)), r"the layer layer \(GroupNorm\)"),
        (Own(lambda net, x: x.softmax(1)), "the method softmax of a tensor"),
        (Own(lambda net, x: torch.sin(x)), "the function sin"),
        (Own(lambda net, x: F.dropout(x)), "the function dropout which drops in eval mode, too"),
        (Own(lambda net, x: torch.add(x, x, alpha=-1)), "the function add with a negative alpha"),
        (Own(lambda net, x: F.leaky_relu(x, -0.1)), "leaky_relu with a negative slope"),
        (
            Own(lambda net, x: net.layer(x), nn.LeakyReLU(-0.1)),
            r"LeakyReLU\) with a negative slope",
        ),
        (Own(lambda net, x: 1 / (x + 1)), "by a number that depends on the images"),
        (Own(lambda net, x: x if x.sum() > 0 else -x), "its forward pass cannot be traced"),
        (Own(lambda net, x: net.layer(x), Louder()), "the method softmax of a tensor"),
        (
            Own(lambda net, x: net.layer(x), nn.BatchNorm2d(3, track_running_stats=False)),
            r"BatchNorm2d\) without running statistics",
        ),
        (nn.Conv2d(3, 3, 1), r"gives shape \(2, 3, 6, 6\)"),
    ],
)
def test_what_cannot_be_bounded_is_named(net, message):
    images = torch.rand(2, *SHAPE)
    with pytest.raises(UserError, match=message) as caught:
        bounds.msp_upper(net, images, 0.1)
    assert str(caught.value).startswith("net: ")


@pytest.mark.parametrize(
    ("images", "radius", "message"),
    [
        (torch.rand(2, *SHAPE), -0.1, "radius: -0.1 is not >= 0"),
        (torch.rand(2, *SHAPE), "x", "radius: 'x' is not a finite number"),
        (torch.rand(2, *SHAPE) * 255, 0.1, "divide 8-bit pixels"),
    ],
)
def test_bad_arguments_are_refused_by_name(images, radius, message):
    with pytest.raises(UserError, match=message):
        bounds.logit_bounds(Own(lambda net, x: x), images, radius)


def test_a_function_that_works_in_place_is_bounded_as_it_works():
    """Whoever reads the tensor again sees what was written."""
    net = Own(lambda net, x: F.relu(y, inplace=True) + y if (y := x - 0.5) is not None else x)
    net = randomised(net)
    images = torch.rand((4, *SHAPE), dtype=torch.float64)
    found = bounds.logit_bounds(net, images, 0.05)
    for point in corners(images, 0.05, 0):
        assert (net(point) <= found.upper + SLACK).all()
    torch.testing.assert_close(bounds.logit_bounds(net, images, 0).upper, net(images))


def test_a_network_that_changes_is_traced_again():
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    images = torch.rand(2, *SHAPE)
    torch.testing.assert_close(bounds.logit_bounds(net, images, 0).upper, net(images))
    net.append(nn.Tanh())
    torch.testing.assert_close(bounds.logit_bounds(net, images, 0).upper, net(images))


def test_bounds_under_autocast_are_in_full_precision(network):
    single = network.float()
    images = images8().float()
    alone = bounds.msp_upper(single, images, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(bounds.msp_upper(single, images, 0.01), alone)
    network.double()


def test_guaranteed_auroc_counts_ties_as_errors():
    inliers = torch.tensor([0.9, 0.5, 0.2])
    outliers = torch.tensor([0.5, 0.1])
    assert bounds.guaranteed_auroc(inliers, outliers) == pytest.approx(4 / 6)
    assert bounds.guaranteed_auroc(inliers, inliers) == pytest.approx(3 / 9)
    assert bounds.guaranteed_auroc(torch.ones(3), torch.ones(2)) == 0
    with pytest.raises(UserError, match=r"outliers: expected scores .* without NaN"):
        bounds.guaranteed_auroc(inliers, torch.tensor([math.nan]))
    assert bounds.guaranteed_auroc(inliers, torch.tensor([math.inf, -math.inf])) == 0.5


# Gated networks
# -------------------------------------------------------------------------------------------------


def gated(gate: nn.Module, shift: float = 0.3) -> Gated:
    classifier = randomised(ConvNet((4,), (2,), 1, (), 4, image_size=8))
    return Gated(classifier, gate.double().eval(), shift).double().eval()


def discriminator(seed: int = 1) -> nn.Module:
    net = ConvNet((4,), (2,), 1, (6,), 1, nonpositive_head=True, image_size=8)
    return randomised(net, seed)


def mixture(directions: int | None = 40, seed: int = 0) -> MixtureRatio:
    gate = MixtureRatio((3, 8, 8), 5, directions, prior_ratio=0.7)
    draws = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 1, 192)
    gate.whiten((torch.rand(50, 192, generator=draws) * spread).view(50, 3, 8, 8), 0.3)
    for side in (gate.inside, gate.outside):
        side.means.data = torch.randn(side.means.shape, generator=draws) * 0.3
        side.weight_logits.data = torch.randn(5, generator=draws)
        side.log_scales.data = torch.rand(5, generator=draws) + 2
    return gate


@pytest.mark.parametrize("make", [discriminator, mixture], ids=["discriminator", "mixtures"])
def test_a_gated_network_is_its_formula_and_within_its_bounds(make):
    net = gated(make())
    images = images8(4)
    share = torch.sigmoid(net.gate(images).reshape(4) + 0.3)[:, None]
    expected = share * net.classifier(images).softmax(1) + (1 - share) / 4
    torch.testing.assert_close(net(images).exp(), expected)
    confidence = MSP(net).published(images)
    torch.testing.assert_close(confidence.double(), expected.amax(1), rtol=1e-5, atol=1e-6)
    for radius in (0, 0.003, 0.02):
        upper = bounds.msp_upper(net, images, radius)
        lower = bounds.msp_lower(net, images, radius)
        assert ((upper >= 0.25) & (upper <= 1)).all()
        for sign, limit in ((1, lower), (-1, upper)):
            attacked = images
            if radius:
                attacked = minimize(
                    lambda x, sign=sign: sign * net(x).amax(1),
                    images, Linf(radius), steps=20, step_size=radius / 4,
                ).images  # fmt: skip
            assert (sign * net(attacked).exp().amax(1) >= sign * limit - SLACK).all()
    gate = bounds.gate_bounds(net, images, 0)
    torch.testing.assert_close(gate.upper, net.gate_logits(images))
    assert torch.equal(bounds.msp_upper(wrap(net), images, 0.02), upper)
    with pytest.raises(UserError, match="temperature: a gated"):
        bounds.msp_upper(net, images, 0.1, temperature=2.0)


def test_the_last_layer_of_a_discriminator_only_lowers():
    layer = NonPositiveLinear(6, 1)
    assert (layer(torch.rand(5, 6)) <= layer.bias).all()
    torch.testing.assert_close(layer(torch.ones(1, 6)), -torch.ones(1, 1))


@settings(max_examples=10)
@given(
    seed=st.integers(0, 100),
    norm=st.sampled_from(["L2", "Linf"]),
    directions=st.sampled_from([1, 40, 100, None]),
)
def test_a_ball_of_pixels_is_inside_its_whitened_ball(seed, norm, directions):
    gate = mixture(directions)
    images = images8(2, seed)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).double()
    if seed % 2:  # along the most stretched direction that has a scale of its own
        place = int(gate.scales.argmin())
        noise = gate.axes.double()[place].view(1, 3, 8, 8).expand_as(images)
    if norm == "Linf":
        step = 0.1 * noise.sign()
    else:
        step = 0.1 * noise / noise.flatten(1).norm(dim=1).clamp_min(1e-9).view(-1, 1, 1, 1)
    moved = (gate.whitened(images + step) - gate.whitened(images)).norm(dim=1)
    assert (moved <= gate.whitened_radius(0.1, norm) * (1 + 1e-6)).all()


def test_whitening_gives_images_unit_variances_and_keeps_distances():
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(300, 3, 4, 4, generator=draws) * torch.linspace(0.5, 1, 4)
    alone = MixtureRatio((3, 4, 4), 2)
    alone.whiten(images, 1e-6)
    points = alone.whitened(images)
    covariance = torch.cov(points.T, correction=0)
    torch.testing.assert_close(covariance, torch.eye(48).double(), rtol=1e-4, atol=1e-4)
    # Where all scales are raised to the floor, it does not matter which have their own.
    few = MixtureRatio((3, 4, 4), 2, directions=5)
    few.whiten(images, 1.0)
    alone.whiten(images, 1.0)
    torch.testing.assert_close(
        torch.cdist(few.whitened(images[:9]), few.whitened(images[:9])),
        torch.cdist(alone.whitened(images[:9]), alone.whitened(images[:9])), rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_whitening_of_fewer_images_than_directions_sees_every_direction():
    images = images8(5)
    gate = MixtureRatio((3, 8, 8), 2)
    gate.whiten(images, 0.1)
    step = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert (gate.whitened(images[:1] + step) - gate.whitened(images[:1])).norm() > step.norm()


def test_far_from_all_data_the_mixtures_give_no_confidence():
    gate = mixture()
    gate.outside.log_scales.data.fill_(-3)  # narrower than inside: raised to twice its largest
    far = torch.full((1, 3, 8, 8), 1e4, dtype=torch.float64)
    assert gate(far) < -1e6
    assert torch.isfinite(gate(images8(2))).all()


def test_an_interval_has_a_centre_and_a_half_width():
    interval = Interval(torch.tensor([1.0]), torch.tensor([4.0]))
    assert interval.centre == 2.5
    assert interval.half_width == 1.5
    assert (
        bound(nn.Sequential(nn.Flatten()), Interval(torch.zeros(1, 2), torch.ones(1, 2))).head
        is None
    )
