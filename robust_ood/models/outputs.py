"""One forward pass of any classifier, and everything that a detector may need from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robust_ood.errors import UserError, unknown_name
from robust_ood.inputs import accepted
from robust_ood.modes import evaluating
from robust_ood.texts import first_sentence


class Outputs(NamedTuple):
    """The results of one forward pass.

    logits: `(N, K)`. features: the head's input `(N, D)`. head: the linear layer between them.
    maps: feature maps by layer name, `(N, C, H, W)`.
    """

    logits: Tensor
    features: Tensor
    head: nn.Linear
    maps: dict[str, Tensor]


def find_head(net: nn.Module) -> nn.Linear:
    """Return the network's linear head: its attribute `head`, or else its last linear layer."""
    head = getattr(net, "head", None)
    if isinstance(head, nn.Linear):
        return head
    linear_layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear_layers:
        raise UserError(
            f"head: {type(net).__name__} has no linear layer; name its head with "
            "robust_ood.models.wrap"
        )
    return linear_layers[-1]


def outputs(net: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
    """Return logits, features, head and chosen feature maps of one differentiable forward pass.

    A module that is called several times in the pass gives the map of its last call. What
    `torch.compile` returned runs uncompiled here, because compiled code calls no hooks.

    Args:
        net: any classifier, `(N, C, H, W)` to `(N, K)`.
        images: `(N, C, H, W)`.
        layers: dotted names of the submodules whose outputs to return.

    Raises:
        UserError: an unknown layer, no linear layer, or a head that the forward pass does not end
            with.
    """
    net = getattr(net, "_orig_mod", net)
    images = accepted(images, net)
    head = find_head(net)
    modules = {name: submodule(net, name) for name in layers}
    features: list[Tensor] = []  # of each call of the head
    maps: dict[str, Tensor] = {}

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features[:] = [inputs[0]]

    def keep_output(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise UserError(f"layers: {name} gives a {type(output).__name__}, not one tensor")
            maps[name] = output.clone()  # an in-place ReLU may follow

        return hook

    hooks: list[RemovableHandle] = []
    try:
        hooks.append(head.register_forward_pre_hook(keep_input))
        for name, module in modules.items():
            hooks.append(module.register_forward_hook(keep_output(name)))
        logits = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError(
            f"net: {type(net).__name__} gives {_kind_of(logits)}; expected logits (N, K)"
        )
    if logits.shape[1] < 2:
        raise UserError(f"net: {type(net).__name__} gives one logit; expected one of each class")
    _check_head(net, head, features, logits)
    return Outputs(logits, features[0], head, maps)


def _check_head(net: nn.Module, head: nn.Linear, features: list[Tensor], logits: Tensor) -> None:
    """Refuse a head that was not called, not with features `(N, D)`, or not for the logits."""
    name = type(net).__name__
    advice = "name the right one with robust_ood.models.wrap(module, head=...)"
    if not features:
        raise UserError(
            f"head: {name} never called {head} (unused, or compiled in place by `.compile()`); "
            f"{advice}"
        )
    if features[0].ndim != 2 or head.out_features != logits.shape[1]:
        raise UserError(
            f"head: {name} calls {head} on features of shape {tuple(features[0].shape)} but gives "
            f"{logits.shape[1]} logits; {advice}"
        )


def _kind_of(output: Any) -> str:
    """Return what a network gave instead of logits, for a message."""
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)}"
    return f"a {type(output).__name__}"


def submodule(net: nn.Module, name: str, field: str = "layers") -> nn.Module:
    """Return the submodule of that dotted name, or raise `UserError` with the nearest known one."""
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        names = [known for known, _ in net.named_modules() if known]
        raise unknown_name(field, name, names) from error


class Layers(NamedTuple):
    """Names of a classifier's layers that detectors read.

    head: name of the linear layer whose output is the logits; None where there is no such layer.
    layers: names of the last modules at each resolution, in order.
    """

    head: str | None
    layers: tuple[str, ...]


def find_layers(net: nn.Module, image_shape: Sequence[int]) -> Layers:
    """Return a classifier's head and feature layers, as a run on blank images in eval mode shows.

    A feature layer is the module, among the outermost two levels, that is the last to give maps
    `(N, C, H, W)` of some resolution above one pixel. Modules that are called more than once do not
    count, nor do maps of three channels or fewer (the images) and maps of another aspect than the
    images' (channels last).

    Args:
        net: any classifier.
        image_shape: channels, height and width of its images; without channels, three.

    Raises:
        UserError: the network cannot take such images or does not give `(N, K)`.
    """
    calls: list[tuple[str, Any]] = []  # names and outputs, a module after those inside it
    hooks: list[RemovableHandle] = []

    def record(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            calls.append((name, output))

        return hook

    accepted(_blank_images(net, image_shape), net)  # a trial pass would count as a second call
    for name, module in net.named_modules():
        if name:
            hooks.append(module.register_forward_hook(record(name)))
    try:
        logits = blank_logits(net, image_shape)
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, _ in calls]
    deepest = _first_level(net) + 1
    head = None
    by_resolution: dict[tuple[int, int], str] = {}
    for name, output in calls:
        if _gives_logits(net.get_submodule(name), output, logits):
            head = name
        called_once = names.count(name) == 1
        if name.count(".") <= deepest and called_once and _is_map(output, image_shape):
            by_resolution[output.shape[2:]] = name
    return Layers(head, tuple(sorted(by_resolution.values(), key=names.index)))


def _gives_logits(module: nn.Module, output: Any, logits: Tensor) -> bool:
    if not isinstance(module, nn.Linear):
        return False
    return output.shape == logits.shape and bool(output.equal(logits))


def _first_level(net: nn.Module) -> int:
    """Return the depth of the first module that does more than wrap one other module."""
    children = [child for child in net.children() if next(child.parameters(), None) is not None]
    has_parameters = next(net.parameters(recurse=False), None) is not None
    if len(children) != 1 or has_parameters:
        return 0
    return 1 + _first_level(children[0])


def _is_map(output: Any, image_shape: Sequence[int]) -> bool:
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[1] <= 3:
        return False
    height, width = output.shape[2:]
    rows, columns = image_shape[-2:]
    return max(height, width) > 1 and abs(height * columns - width * rows) <= max(rows, columns)


def count_classes(net: nn.Module, image_shape: Sequence[int]) -> int:
    """Return how many logits a network gives for blank images.

    image_shape: their channels, height and width; without channels, three.

    Raises: `UserError` where the network cannot take such images or does not give `(N, K)`.
    """
    return blank_logits(net, image_shape).shape[1]


_REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)
"""What networks raise on images that they cannot take; `UserError` is a `ValueError`."""


def _blank_images(net: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return two black images on the network's device and of its precision."""
    parameter = next(net.parameters(), torch.empty(0))
    shape = tuple(image_shape)
    if len(shape) == 2:
        shape = (3, *shape)
    return torch.zeros((2, *shape), device=parameter.device, dtype=parameter.dtype)


def blank_logits(net: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return the logits `(2, K)` of two blank images, in eval mode.

    image_shape: their channels, height and width; without channels, three.

    Raises: `UserError` where the network cannot take such images or does not give `(N, K)`.
    """
    blank = _blank_images(net, image_shape)
    try:
        with evaluating(net), torch.no_grad():
            logits = net(accepted(blank, net))
    except _REFUSALS as error:
        advice = _channels_advice(net, blank)
        if isinstance(error, UserError) and not advice:
            raise
        size = " x ".join(str(length) for length in blank.shape[1:])
        raise UserError(
            f"net: {type(net).__name__} cannot take {size} images ({first_sentence(error)}){advice}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        raise UserError(
            f"net: {type(net).__name__} gives {_kind_of(logits)} for 2 images; "
            "expected logits (2, K)"
        )
    return logits


def _channels_advice(net: nn.Module, refused: Tensor) -> str:
    """Return what to set where a network takes grey images instead of RGB, or RGB for grey."""
    channels = 1 if refused.shape[1] == 3 else 3
    images = refused[:, :1].expand(-1, channels, -1, -1).contiguous()
    try:
        with evaluating(net), torch.no_grad():
            net(images)
    except _REFUSALS:
        return ""
    return (
        f"; it takes {channels} channel{'s' if channels > 1 else ''}: set data.channels: {channels}"
    )
