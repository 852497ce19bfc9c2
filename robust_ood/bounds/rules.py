"""What each layer and function does to an interval.

There are four kinds. What rises with all its inputs (ReLU, pooling, sums, reshaping) is applied to
both bounds. An affine layer moves the centre as it moves a point, and the half width by its
absolute weights. Activations with one lowest point (GELU, SiLU) need that point. Differences and
products have rules of their own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from robust_ood.bounds.interval import Interval, around, hull
from robust_ood.models import Normalize

Rule = Callable[..., Interval]
"""A function and its arguments, intervals among them, to the interval of its results."""


class UnboundableError(Exception):
    """A layer or function for which there is no rule, with the reason."""


# What rises with every input
# -------------------------------------------------------------------------------------------------

_RISING_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Sigmoid, nn.Tanh, nn.Softplus,
    nn.Hardtanh, nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign, nn.Softshrink,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d, nn.PixelShuffle, nn.ChannelShuffle,
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
)  # fmt: skip
_RISING_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.selu, F.softplus, F.hardtanh,
    F.hardsigmoid, F.logsigmoid, F.softsign, F.sigmoid, torch.sigmoid, F.tanh, torch.tanh,
    torch.exp, torch.clamp, torch.maximum, torch.minimum,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.max_pool1d,
    F.avg_pool1d, F.adaptive_avg_pool1d,
    torch.add, operator.add, operator.iadd, torch.mean, torch.sum, torch.amax, torch.amin,
    torch.cat, torch.stack, torch.flatten, torch.reshape, torch.permute, torch.transpose,
    torch.squeeze, torch.unsqueeze, operator.getitem, F.pad,
)  # fmt: skip
_SLOPED_FUNCTIONS: tuple[Callable[..., Any], ...] = (F.leaky_relu, F.elu, F.celu)
_RISING_METHODS = (
    "relu", "relu_", "sigmoid", "tanh", "exp", "clamp", "clamp_", "add", "add_", "mean", "sum",
    "amax", "amin", "view", "reshape", "flatten", "permute", "transpose", "contiguous", "squeeze",
    "unsqueeze", "expand", "float", "double",
)  # fmt: skip
PLAIN_METHODS = ("size", "dim", "numel")
"""Methods that ask for a shape, which both bounds have."""
PLAIN_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


def rising(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Interval:
    """Return the function of both bounds of all its arguments."""
    # `add(a, b, alpha=-1)` is a difference.
    if settings.get("alpha", 1) < 0:
        raise UnboundableError("with a negative alpha")
    # Dropout is off in eval mode; `F.dropout(x)` of a forward pass never is.
    if isinstance(function, nn.Module):
        _check_slope(getattr(function, "negative_slope", 0), getattr(function, "alpha", 0))
    return Interval(
        function(*_bounds(arguments, "lower"), **_bounds(settings, "lower")),
        function(*_bounds(arguments, "upper"), **_bounds(settings, "upper")),
    )


def _sloped(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Interval:
    slopes = [*arguments[1:], *settings.values()]
    _check_slope(*(value for value in slopes if not isinstance(value, bool)))
    return rising(function, *arguments, **settings)


def _check_slope(*slopes: float) -> None:
    if min(slopes, default=0) < 0:
        raise UnboundableError("with a negative slope")


def _bounds(arguments: Any, side: str) -> Any:
    """Return arguments with one side of each interval in its place, in tuples and mappings too."""
    if isinstance(arguments, Interval):
        return getattr(arguments, side)
    if isinstance(arguments, tuple | list):
        return tuple(_bounds(argument, side) for argument in arguments)
    if isinstance(arguments, Mapping):
        return {name: _bounds(argument, side) for name, argument in arguments.items()}
    return arguments


def rising_method(name: str, images: Interval, *arguments: Any, **settings: Any) -> Interval:
    """Return a tensor's method of both bounds."""
    # A bound's memory need not be laid out as the network's own maps are.
    name = {"view": "reshape"}.get(name, name)

    def call(tensor: Tensor, *values: Any, **named: Any) -> Any:
        return getattr(tensor, name)(*values, **named)

    return rising(call, images, *arguments, **settings)


def _dropout(function: Callable[..., Any], x: Interval, *arguments: Any, **settings: Any) -> Any:
    training = settings.get("training", arguments[1] if len(arguments) > 1 else True)
    if training:
        raise UnboundableError("which drops in eval mode, too")
    return x


# Affine layers
# -------------------------------------------------------------------------------------------------


def _linear(layer: nn.Linear, x: Interval) -> Interval:
    return around(layer(x.centre), F.linear(x.half_width, layer.weight.abs()))


def _convolution(layer: nn.Conv2d, x: Interval) -> Interval:
    half_width = layer._conv_forward(x.half_width, layer.weight.abs(), None)
    return around(layer(x.centre), half_width)


def _batch_norm(layer: nn.BatchNorm2d, x: Interval) -> Interval:
    if layer.running_var is None:
        raise UnboundableError("without running statistics")
    scale = (layer.running_var + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.abs()
    shape = (1, -1, *[1] * (x.lower.dim() - 2))
    return around(layer(x.centre), x.half_width * scale.view(shape))


def _normalize(layer: Normalize, x: Interval) -> Interval:
    return around(layer(x.centre), x.half_width / layer.std)


def _affine_function(
    function: Callable[..., Any], x: Any, weight: Any, bias: Any = None, *rest: Any, **more: Any
) -> Interval:
    """Return the interval of `F.linear` and `F.conv2d` with weights that are no intervals."""
    if isinstance(weight, Interval) or isinstance(bias, Interval) or not isinstance(x, Interval):
        raise UnboundableError("with weights that depend on the images")
    centre = function(x.centre, weight, bias, *rest, **more)
    return around(centre, function(x.half_width, weight.abs(), None, *rest, **more))


# Activations with one lowest point, below which they fall and above which they rise
# -------------------------------------------------------------------------------------------------

_LOWEST_LAYERS: dict[type[nn.Module], float] = {
    nn.SiLU: -1.2784645427610738,
    nn.Mish: -1.1924312145154206,
    nn.Hardswish: -1.5,
}
_LOWEST_FUNCTIONS: dict[Callable[..., Any], float] = {
    F.silu: -1.2784645427610738,
    F.mish: -1.1924312145154206,
    F.hardswish: -1.5,
    torch.abs: 0.0,
    torch.square: 0.0,
}
_LOWEST_GELU = {"none": -0.7517915248016866, "tanh": -0.7524614220710162}


def valley(
    function: Callable[..., Any], x: Interval, *, lowest: float, **settings: Any
) -> Interval:
    """Return the interval of a function that falls to its lowest point and rises behind it."""
    # Working in place, the second call would see what the first one wrote.
    settings.pop("inplace", None)
    lower = function(x.lower.clone(), **settings)
    upper = function(x.upper.clone(), **settings)
    inside = (x.lower <= lowest) & (x.upper >= lowest)
    bottom = function(torch.full_like(x.lower, lowest), **settings)
    smallest = torch.where(inside, bottom, torch.minimum(lower, upper))
    return Interval(smallest, torch.maximum(lower, upper))


def _gelu_layer(layer: nn.GELU, x: Interval) -> Interval:
    return valley(layer, x, lowest=_LOWEST_GELU[layer.approximate])


def _gelu(function: Callable[..., Any], x: Interval, approximate: str = "none") -> Interval:
    return valley(function, x, lowest=_LOWEST_GELU[approximate], approximate=approximate)


# Differences and products
# -------------------------------------------------------------------------------------------------


def _difference(_: Callable[..., Any], first: Any, second: Any) -> Interval:
    return Interval(
        _bounds(first, "lower") - _bounds(second, "upper"),
        _bounds(first, "upper") - _bounds(second, "lower"),
    )


def _product(_: Callable[..., Any], first: Any, second: Any) -> Interval:
    corners = []
    for side in ("lower", "upper"):
        for other in ("lower", "upper"):
            corners.append(_bounds(first, side) * _bounds(second, other))
    return hull(*corners)


def _quotient(_: Callable[..., Any], first: Any, second: Any) -> Interval:
    if isinstance(second, Interval):
        raise UnboundableError("by a number that depends on the images")
    return hull(_bounds(first, "lower") / second, _bounds(first, "upper") / second)


def _negative(_: Callable[..., Any], x: Interval) -> Interval:
    return Interval(-x.upper, -x.lower)


# The tables
# -------------------------------------------------------------------------------------------------

LAYERS: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(_RISING_LAYERS, rising),
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.GELU: _gelu_layer,
    Normalize: _normalize,
}
"""The rule of each kind of layer; a subclass with a forward pass of its own has none."""

FUNCTIONS: dict[Callable[..., Any], Rule] = {
    **dict.fromkeys(_RISING_FUNCTIONS, rising),
    **dict.fromkeys(_SLOPED_FUNCTIONS, _sloped),
    F.dropout: _dropout,
    F.dropout2d: _dropout,
    F.linear: _affine_function,
    F.conv2d: _affine_function,
    F.gelu: _gelu,
    operator.sub: _difference,
    torch.sub: _difference,
    operator.mul: _product,
    torch.mul: _product,
    operator.truediv: _quotient,
    torch.div: _quotient,
    operator.neg: _negative,
    torch.neg: _negative,
}
"""The rule of each function."""

METHODS: dict[str, Rule] = dict.fromkeys(_RISING_METHODS, rising_method)
"""The rule of each method of a tensor."""


def _valley_rule(lowest: float) -> Rule:
    def rule(function: Callable[..., Any], x: Interval, **settings: Any) -> Interval:
        return valley(function, x, lowest=lowest, **settings)

    return rule


for _layer, _point in _LOWEST_LAYERS.items():
    LAYERS[_layer] = _valley_rule(_point)
for _function, _point in _LOWEST_FUNCTIONS.items():
    FUNCTIONS[_function] = _valley_rule(_point)


def rule_of(layer: nn.Module) -> Rule | None:
    """Return the rule of a layer; None where there is none."""
    for kind in type(layer).__mro__:
        if kind in LAYERS and type(layer).forward is kind.forward:
            return LAYERS[kind]
    return None


def name_of(node: fx.Node, net: nn.Module) -> str:
    """Return what a message calls a layer or function of a traced network."""
    if node.op == "call_module":
        layer = net.get_submodule(str(node.target))
        return f"the layer {node.target} ({type(layer).__name__})"
    if node.op == "call_method":
        return f"the method {node.target} of a tensor"
    return f"the function {getattr(node.target, '__name__', node.target)}"
