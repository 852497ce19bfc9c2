"""A network as a list of layers and functions, and the interval of each of their results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from robust_ood.bounds.interval import Interval
from robust_ood.bounds.rules import (
    FUNCTIONS,
    METHODS,
    PLAIN_ATTRIBUTES,
    PLAIN_METHODS,
    UnboundableError,
    name_of,
    rule_of,
)
from robust_ood.errors import UserError
from robust_ood.modes import evaluating
from robust_ood.texts import first_sentence


class _Tracer(fx.Tracer):
    """Looks into every module but those that have a rule, and torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rule_of(m) is not None or super().is_leaf_module(m, module_qualified_name)


class _Kept(NamedTuple):
    """A network's graph, and the kinds of the modules that it is of."""

    graph: fx.Graph
    kinds: tuple[type[nn.Module], ...]


_graphs: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


class Bounded(NamedTuple):
    """The bounds of one pass.

    outputs: of the network's result `(N, K)`. features: of the last linear layer's input `(N, D)`,
    and head: that layer; None where the network does not end with one.
    """

    outputs: Interval
    features: Interval | None
    head: nn.Linear | None


def bound(net: nn.Module, images: Interval) -> Bounded:
    """Return bounds of a network's outputs over intervals of images `(N, C, H, W)`.

    The network is bounded as it is in eval mode; its flags are restored. Gradients reach the
    parameters. Nothing is cast down by autocast, because bounds would cross.

    Raises:
        UserError: a layer or function without a rule, by name, or a forward pass that cannot be
            followed because its way depends on values.
    """
    net = getattr(net, "_orig_mod", net)
    with evaluating(net), full_precision(images.lower):
        graph = _graph(net)
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "output":
                return _result(net, node, values)
            values[node] = _value(net, node, values, images)
    raise AssertionError("a graph ends with an output")


def _graph(net: nn.Module) -> fx.Graph:
    """Return the calls of a network in order; it is traced again where its modules changed."""
    kinds = tuple(type(module) for module in net.modules())
    kept = _graphs.get(net)
    if kept is None or kept.kinds != kinds:
        try:
            graph = _Tracer().trace(net)
        except UserError:
            raise
        except Exception as error:  # whatever a user's forward pass makes of a symbol
            raise UserError(
                f"net: {type(net).__name__} cannot be bounded, because its forward pass cannot be "
                f"traced ({first_sentence(error)})"
            ) from error
        kept = _Kept(graph, kinds)
        _graphs[net] = kept
    return kept.graph


def _value(net: nn.Module, node: fx.Node, values: dict[fx.Node, Any], images: Interval) -> Any:
    """Return a node's interval, or its plain value where the images do not matter."""
    if node.op == "placeholder":
        first = not any(earlier.op == "placeholder" for earlier in values)
        return images if first else next(iter(node.args), None)
    if node.op == "get_attr":
        value: Any = net
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return value
    arguments: Any = fx.node.map_arg(node.args, values.__getitem__)
    settings: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
    intervals = [source for source in node.all_input_nodes if _is_interval(values[source])]
    if not intervals:
        return _plain(net, node, arguments, settings)
    try:
        return _interval(net, node, arguments, settings)
    except UnboundableError as error:
        reason = str(error)
        raise UserError(
            f"net: {type(net).__name__} has {name_of(node, net)}{reason and ' ' + reason}, "
            "whose bounds are not known"
        ) from error


def _is_interval(value: Any) -> bool:
    return isinstance(value, Interval)


def _plain(net: nn.Module, node: fx.Node, arguments: Any, settings: Any) -> Any:
    if node.op == "call_module":
        return net.get_submodule(str(node.target))(*arguments, **settings)
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **settings)
    assert callable(node.target)
    return node.target(*arguments, **settings)


def _interval(net: nn.Module, node: fx.Node, arguments: Any, settings: Any) -> Any:
    if node.op == "call_module":
        layer = net.get_submodule(str(node.target))
        rule = rule_of(layer)
        if rule is None:
            raise UnboundableError
        return rule(layer, *arguments, **settings)
    if node.op == "call_method":
        name = str(node.target)
        if name in PLAIN_METHODS:
            return getattr(arguments[0].lower, name)(*arguments[1:], **settings)
        if name not in METHODS:
            raise UnboundableError
        return METHODS[name](name, *arguments, **settings)
    if node.target is getattr and arguments[1] in PLAIN_ATTRIBUTES:
        return getattr(arguments[0].lower, arguments[1])
    rule = FUNCTIONS.get(node.target)  # type: ignore[arg-type]
    if rule is None:
        raise UnboundableError
    return rule(node.target, *arguments, **settings)


def _result(net: nn.Module, output: fx.Node, values: dict[fx.Node, Any]) -> Bounded:
    last = output.args[0]
    if not isinstance(last, fx.Node) or not isinstance(values[last], Interval):
        raise UserError(f"net: {type(net).__name__} gives no logits (N, K), and has no bounds")
    outputs: Interval = values[last]
    if outputs.lower.dim() != 2:
        shape = tuple(outputs.lower.shape)
        raise UserError(f"net: {type(net).__name__} gives shape {shape}; expected logits (N, K)")
    if last.op == "call_module":
        head = net.get_submodule(str(last.target))
        if isinstance(head, nn.Linear):
            (source,) = last.all_input_nodes
            return Bounded(outputs, values[source], head)
    return Bounded(outputs, None, None)


@contextmanager
def full_precision(like: Tensor) -> Iterator[None]:
    """Compute inside the block in the tensors' own precision, of any shape."""
    with torch.autocast(like.device.type, enabled=False):
        yield
