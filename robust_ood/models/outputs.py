"""One forward pass of any classifier, and everything a detector may want of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robust_ood.errors import UserError, unknown_name
from robust_ood.modes import evaluating


class Outputs(NamedTuple):
    """What one forward pass gave.

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
    found = [part for part in net.modules() if isinstance(part, nn.Linear)]
    if not found:
        raise UserError(
            f"head: {type(net).__name__} has no linear layer; name its head with robust_ood.models.wrap"
        )
    return found[-1]


def outputs(net: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
    """Return logits, penultimate features, head and chosen feature maps of one forward pass, all
    differentiable.

    A module that is called several times in the pass gives the map of its last call. What
    `torch.compile` returned runs uncompiled here, because compiled code calls no hooks.

    Args:
        net: any classifier, `(N, C, H, W)` to `(N, K)`.
        images: `(N, C, H, W)`.
        layers: dotted names of submodules whose outputs are wanted.

    Raises:
        UserError: an unknown layer, no linear layer, or a head that the forward pass does not end
            with.
    """
    net = getattr(net, "_orig_mod", net)
    head = find_head(net)
    parts = {name: submodule(net, name) for name in layers}
    seen: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["features"] = inputs[0]

    def keep_output(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise UserError(f"layers: {name} gives a {type(output).__name__}, not one tensor")
            maps[name] = output.clone()  # an in-place ReLU may follow

        return hook

    hooks: list[RemovableHandle] = []
    try:
        hooks.append(head.register_forward_pre_hook(keep_input))
        hooks.extend(part.register_forward_hook(keep_output(name)) for name, part in parts.items())
        logits = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    _check_head(net, head, seen.get("features"), logits)
    return Outputs(logits, seen["features"], head, maps)


def _check_head(net: nn.Module, head: nn.Linear, features: Tensor | None, logits: Any) -> None:
    """Raise `UserError` unless the head was called with `(N, D)` features and is as wide as the
    logits `(N, K)`.
    """
    kind, advice = (
        type(net).__name__,
        "name the right one with robust_ood.models.wrap(module, head=...)",
    )
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = (
            f"shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else f"a {type(logits).__name__}"
        )
        raise UserError(f"net: {kind} gives {found}; accepted: logits (N, K)")
    if features is None:
        raise UserError(
            f"head: {kind} never called {head} (unused, or compiled in place by `.compile()`); {advice}"
        )
    if features.ndim != 2 or head.out_features != logits.shape[1]:
        given = f"features of shape {tuple(features.shape)} but gives {logits.shape[1]} logits"
        raise UserError(f"head: {kind} calls {head} on {given}; {advice}")


def submodule(net: nn.Module, name: str, field: str = "layers") -> nn.Module:
    """Return the submodule of that dotted name, or raise `UserError` with the nearest known one."""
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        raise unknown_name(field, name, [n for n, _ in net.named_modules() if n]) from error


class Parts(NamedTuple):
    """What a look at one forward pass finds.

    head: name of the linear layer whose output is the logits; None where there is no such layer.
    layers: names of the last modules at each resolution, in order.
    """

    head: str | None
    layers: tuple[str, ...]


def find_parts(net: nn.Module, image_shape: tuple[int, int]) -> Parts:
    """Return a classifier's head and conventional feature layers, found by running it on blank
    images in eval mode.

    A feature layer is the module, among the outermost two levels, that is the last to give maps
    `(N, C, H, W)` of some resolution above one pixel. Modules that are called more than once do not
    count, nor do maps of three channels or fewer (the images) and maps of another aspect than the
    images' (channels last).

    Args:
        net: any classifier.
        image_shape: height and width of its images.

    Raises:
        UserError: the network cannot take such images or does not give `(N, K)`.
    """
    calls: list[tuple[str, Any]] = []

    def note(name: str) -> Any:
        return lambda _, __, output: calls.append((name, output))

    hooks = [part.register_forward_hook(note(name)) for name, part in net.named_modules() if name]
    try:
        logits = blank_logits(net, image_shape)
    finally:
        for hook in hooks:
            hook.remove()
    heads = [
        name
        for name, output in calls
        if isinstance(net.get_submodule(name), nn.Linear)
        and output.shape == logits.shape
        and output.equal(logits)
    ]
    names = [name for name, _ in calls]
    level = _first_level(net)
    by_resolution: dict[tuple[int, int], str] = {}
    for name, output in calls:  # a module is done after those inside it
        if name.count(".") <= level + 1 and names.count(name) == 1 and _is_map(output, image_shape):
            by_resolution[output.shape[2:]] = name
    return Parts(
        heads[-1] if heads else None, tuple(sorted(by_resolution.values(), key=names.index))
    )


def _first_level(net: nn.Module) -> int:
    """Return how deep the first module is that is more than a wrapper around one other with all the
    parameters.
    """
    children = [child for child in net.children() if next(child.parameters(), None) is not None]
    direct = next(net.parameters(recurse=False), None) is not None
    return 1 + _first_level(children[0]) if len(children) == 1 and not direct else 0


def _is_map(output: Any, image_shape: tuple[int, int]) -> bool:
    if not isinstance(output, Tensor) or output.dim() != 4 or output.shape[1] <= 3:
        return False
    (height, width), (rows, columns) = output.shape[2:], image_shape
    return max(height, width) > 1 and abs(height * columns - width * rows) <= max(rows, columns)


def count_classes(net: nn.Module, image_shape: tuple[int, int]) -> int:
    """Return how many logits a network gives for images of this height and width, by trying blank
    ones.

    Raises: `UserError` where the network cannot take such images or does not give `(N, K)`.
    """
    return blank_logits(net, image_shape).shape[1]


def blank_logits(net: nn.Module, image_shape: tuple[int, int]) -> Tensor:
    """Return the logits `(2, K)` of two blank images of this height and width, in eval mode.

    Raises: `UserError` where the network cannot take such images or does not give `(N, K)`.
    """
    parameter = next(net.parameters(), torch.empty(0))
    blank = torch.zeros((2, 3, *image_shape), device=parameter.device, dtype=parameter.dtype)
    try:
        with evaluating(net), torch.no_grad():
            logits = net(blank)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        size = f"3 x {image_shape[0]} x {image_shape[1]}"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"net: {type(net).__name__} cannot take {size} images ({reason})"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"net: {type(net).__name__} gives {found} for 2 images; logits (2, K) are wanted"
        )
    return logits
