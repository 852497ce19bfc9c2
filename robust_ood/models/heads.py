"""The linear head of a classifier: which layer it is, and whether the logits really come from it.

A layer is the head where its weights times its input, the features, are the logits. That is tried
once for each network, on random images in eval mode: a second layer of the same width, or logits
that are changed afterwards, would otherwise give detectors the wrong weights without a word.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeGuard
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.inputs import accepted, is_ours, logits_of
from robust_ood.models.probing import class_name, images_to_try, random_images, trying


class Head(NamedTuple):
    """What is known of a network's end.

    name: dotted name of the layer whose input, averaged over pixels or tokens, is the features;
    None where there is none. exact: whether its weights times the features are the logits. classes:
    K. net: the network's class, for messages.
    """

    name: str | None
    exact: bool
    classes: int
    net: str

    @property
    def label(self) -> str:
        """The layer's name as users of `wrap` write it."""
        return str(self.name).removeprefix("module.")

    @property
    def features_problem(self) -> str:
        """Why there are no features; empty where there are."""
        if self.name is not None:
            return ""
        outputs = f" with {self.classes} outputs" if self.classes else ""
        return (
            f"head: {self.net} has no linear head (no linear layer or 1 x 1 convolution{outputs} "
            "is called), and so no penultimate features; scores of the logits alone work"
        )

    @property
    def head_problem(self) -> str:
        """Why there is no head; empty where there is one."""
        if self.name is None or self.exact:
            return self.features_problem
        return (
            f"head: the logits of {self.net} are not the output of {self.label}, nor of another "
            "layer: return that output unchanged, or name its layer with "
            "robust_ood.models.wrap(module, head=...)"
        )


class _Known(NamedTuple):
    """A head, and how to see that it is still the network's.

    layer: the layer itself, where there is one. candidates: the layers among which there was none.
    """

    head: Head
    layer: ReferenceType[nn.Module] | None
    candidates: tuple[int, ...]


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()
"""The heads of networks that have been tried."""


@typed
def find_head(net: nn.Module) -> nn.Linear:
    """Return the network's linear head: the layer whose weights times its input are the logits.

    Of several such layers it is the attribute `head`, or else the one registered last. The weights
    of a 1 x 1 convolution that is averaged over pixels come as a linear layer that shares them.

    Raises:
        UserError: no such layer.
    """
    net = getattr(net, "_orig_mod", net)
    head = known_head(net)
    if head is None:  # it takes no image of a usual size: what is likely has to do
        name = likely_head(net, candidates(net))
        head = Head(name, exact=True, classes=0, net=class_name(net))
    if head.head_problem:
        raise UserError(head.head_problem)
    return as_linear(net.get_submodule(str(head.name)))


def known_head(net: nn.Module) -> Head | None:
    """Return a network's head as found before, or on images of usual sizes; None if it takes none.

    `head_of` finds it on images that are at hand.
    """
    net = getattr(net, "_orig_mod", net)
    known = _remembered(net)
    if known is not None:
        return known
    for images in images_to_try(net):
        head = head_of(net, images)
        if head is not None:
            return head
    return None


def head_of(net: nn.Module, images: Tensor) -> Head | None:
    """Return a network's head, tried on random images `(2, C, H, W)` like the given ones.

    None where the network cannot take them: the caller's own pass then says why.
    """
    known = _remembered(net)
    if known is not None:
        return known
    if images.is_meta:  # holds no numbers to compare
        return None
    layers = candidates(net)
    try:
        inputs, logits = _seen(net, random_images(images), layers)
    except Exception:  # whatever it is, the caller's own pass raises it again
        return None
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        return None
    name, exact = _chosen(net, layers, inputs, logits)
    head = Head(name, exact, logits.shape[1], class_name(net))
    # All layers give the same where the logits are all 0 or NaN, as before training; another look
    # is due later.
    if not bool(logits.isnan().any()) and bool(logits.any()):
        layer = None if name is None else ref(layers[name])
        _known[net] = _Known(head, layer, _identities(layers))
    return head


def _remembered(net: nn.Module) -> Head | None:
    """Return what is known of a network: of ours by construction, of others since it was tried."""
    if is_ours(net) and isinstance(net.head, nn.Linear):
        return Head("head", exact=True, classes=net.head.out_features, net=class_name(net))
    known = _known.get(net)
    if known is None:
        return None
    if torch.compiler.is_compiling():  # submodules are stand-ins, and nothing can be tried
        return known.head
    if known.layer is None:
        return known.head if known.candidates == _identities(candidates(net)) else None
    try:
        layer = net.get_submodule(str(known.head.name))
    except AttributeError:
        return None
    return known.head if layer is known.layer() else None


def _identities(layers: dict[str, nn.Module]) -> tuple[int, ...]:
    return tuple(map(id, layers.values()))


def candidates(net: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that could be a head, by name: linear ones and 1 x 1 convolutions."""
    layers: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if name and is_linear(module):
            layers[name] = module
    return layers


def is_linear(module: object) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether a module computes a linear map of each vector, or of each pixel's channels."""
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, nn.Conv2d):
        return False
    return module.kernel_size == (1, 1) and module.groups == 1 and module.padding in (0, (0, 0))


def as_linear(layer: nn.Module) -> nn.Linear:
    """Return a head as a linear layer; that of a convolution shares its weights.

    It is made anew in each call, because a network that moves to another device gets new weights.
    """
    if isinstance(layer, nn.Linear):
        return layer
    assert isinstance(layer, nn.Conv2d)
    linear = nn.Linear(
        layer.in_channels, layer.out_channels, bias=layer.bias is not None, device="meta"
    )
    linear.weight = nn.Parameter(layer.weight.detach().flatten(1), requires_grad=False)  # (K, D)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return linear


def pooled(layer: nn.Module, features: Tensor) -> Tensor:
    """Return what a layer was given as features `(N, D)`: averaged over pixels or tokens.

    Averaging before the layer is the same as after it, because it is linear.
    """
    if features.dim() == 2:
        return features
    if isinstance(layer, nn.Linear):
        return features.flatten(1, -2).mean(1)  # (N, ..., D)
    return features.flatten(2).mean(2)  # (N, D, H, W)


def given_input(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Return what a layer was called with: `layer(x)` or `layer(input=x)`."""
    if inputs:
        return inputs[0]
    return keywords.get("input")


def _seen(
    net: nn.Module, images: Tensor, layers: dict[str, nn.Module]
) -> tuple[dict[str, Tensor], Any]:
    """Return the features that each layer got in its last call, in the order of calls; and logits.

    All in eval mode, in the memory layout that the network takes.
    """
    inputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            features = given_input(given, keywords)
            inputs.pop(name, None)  # the order is that of the last calls
            if isinstance(features, Tensor) and features.dim() > 1:
                inputs[name] = pooled(layer, features).clone()

        return hook

    hooks: list[RemovableHandle] = []
    images = accepted(images, net)
    try:
        for name, layer in layers.items():
            hooks.append(layer.register_forward_pre_hook(keep(name), with_kwargs=True))
        with trying(net, images):
            logits = logits_of(net(images))
    finally:
        for handle in hooks:
            handle.remove()
    return inputs, logits


def _chosen(
    net: nn.Module, layers: dict[str, nn.Module], inputs: dict[str, Tensor], logits: Tensor
) -> tuple[str | None, bool]:
    """Return the name of the head, and whether the logits are its output."""
    given = getattr(net, "given_head", None)
    if given is not None:
        called = given in inputs
        return given if called else None, called and _gives(layers[given], inputs[given], logits)
    likely = likely_head(net, layers)
    order = [name for name in reversed(inputs) if width(layers[name]) == logits.shape[1]]
    if likely in order:
        order.remove(likely)
        order.insert(0, likely)
    if not order:
        return None, False
    # The closest, because a running average of the head can be within the tolerance, too.
    nearest = min(order, key=lambda name: _error(layers[name], inputs[name], logits))
    if _gives(layers[nearest], inputs[nearest], logits):
        return nearest, True
    return order[0], False


def likely_head(net: nn.Module, layers: dict[str, nn.Module]) -> str | None:
    """Return the layer that most networks would mean: the attribute `head`, or the last linear."""
    try:
        head = getattr(net, "head", None)
    except UserError:  # a property that looks for it, of a network without one
        head = None
    for name, layer in layers.items():
        if layer is head:
            return name
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else next(reversed(layers), None)


def width(layer: nn.Module) -> int:
    """Return how many outputs a candidate has."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.out_features


def _gives(layer: nn.Module, features: Tensor, logits: Tensor) -> bool:
    """Whether a layer's weights times the features are the logits, up to rounding."""
    # GPUs round the products of convolutions to 10 bits.
    tolerance = max(1e-2, torch.finfo(logits.dtype).eps ** 0.5)
    return bool(_error(layer, features, logits) <= tolerance)


@torch.no_grad()
def _error(layer: nn.Module, features: Tensor, logits: Tensor) -> float:
    """Return the largest difference of weights times features from the logits, by their size."""
    linear = as_linear(layer)
    if linear.weight.shape != (logits.shape[1], features.shape[1]):
        return torch.inf
    expected = F.linear(features.to(linear.weight), linear.weight, linear.bias).to(logits)
    same = (expected == logits) | (expected.isnan() & logits.isnan())
    difference = float(torch.where(same, 0, expected - logits).abs().max())
    if difference == 0:
        return 0.0
    size = float(logits.nan_to_num(0, 0, 0).abs().max())
    if size == 0 or math.isnan(difference):
        return torch.inf
    return difference / size


def require(net: nn.Module, part: Literal["features", "head"], reader: str) -> None:
    """Refuse a network that lacks what a detector reads.

    Args:
        net: classifier.
        part: what is read.
        reader: the detector, for the message.

    Raises:
        UserError: no such part, as far as it can be told without images.
    """
    head = known_head(net)
    if head is None:
        if candidates(net):
            return
        head = Head(None, exact=False, classes=0, net=class_name(net))
    problem = head.head_problem if part == "head" else head.features_problem
    if problem:
        needed = "a linear head" if part == "head" else "penultimate features"
        raise UserError(f"net: {reader} needs {needed}; {problem.removeprefix('head: ')}")


def require_classes(net: nn.Module, reader: str) -> int:
    """Return how many logits a network gives.

    Args:
        net: classifier.
        reader: the detector, for the message.

    Raises:
        UserError: the network has been given no image yet, and takes none of a usual size.
    """
    head = known_head(net)
    if head is not None:
        return head.classes
    layers = candidates(net)
    likely = likely_head(net, layers)
    if likely is not None:
        return width(layers[likely])
    raise UserError(
        f"net: {reader} needs the number of classes, and {class_name(net)} takes no images of a "
        "usual size; score a batch of images first (detector(images))"
    )
