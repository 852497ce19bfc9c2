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

    logits: `(N, K)`. features: the head's input `(N, D)`. head: the linear layer between them. maps: feature maps by
    layer name, `(N, C, H, W)`.
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
        raise UserError(f"head: {type(net).__name__} has no linear layer; name its head with robust_ood.models.wrap")
    return found[-1]


def outputs(net: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
    """Return logits, penultimate features, head and chosen feature maps of one forward pass, all differentiable.

    A module that is called several times in the pass gives the map of its last call. What `torch.compile` returned
    runs uncompiled here, because compiled code calls no hooks.

    Args:
        net: any classifier, `(N, C, H, W)` to `(N, K)`.
        images: `(N, C, H, W)`.
        layers: dotted names of submodules whose outputs are wanted.

    Raises:
        UserError: an unknown layer, no linear layer, or a head that the forward pass does not end with.
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
    """Raise `UserError` unless the head was called with `(N, D)` features and is as wide as the logits `(N, K)`."""
    kind, advice = type(net).__name__, "name the right one with robust_ood.models.wrap(module, head=...)"
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UserError(f"net: {kind} gives {found}; accepted: logits (N, K)")
    if features is None:
        raise UserError(f"head: {kind} never called {head} (unused, or compiled in place by `.compile()`); {advice}")
    if features.ndim != 2 or head.out_features != logits.shape[1]:
        given = f"features of shape {tuple(features.shape)} but gives {logits.shape[1]} logits"
        raise UserError(f"head: {kind} calls {head} on {given}; {advice}")


def submodule(net: nn.Module, name: str, field: str = "layers") -> nn.Module:
    """Return the submodule of that dotted name, or raise `UserError` with the nearest known one."""
    try:
        return net.get_submodule(name)
    except AttributeError as error:
        raise unknown_name(field, name, [n for n, _ in net.named_modules() if n]) from error


def count_classes(net: nn.Module, image_shape: tuple[int, int]) -> int:
    """Return how many logits a network gives for images of this height and width, by trying one.

    Raises: `UserError` where the network cannot take such images or does not give `(N, K)`.
    """
    parameter = next(net.parameters(), torch.empty(0))
    blank = torch.zeros((2, 3, *image_shape), device=parameter.device, dtype=parameter.dtype)
    try:
        with evaluating(net), torch.no_grad():
            logits = net(blank)
    except RuntimeError as error:
        size = f"3 x {image_shape[0]} x {image_shape[1]}"
        raise UserError(
            f"net: {type(net).__name__} cannot take {size} images ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"net: {type(net).__name__} gives {found} for 2 images; logits (2, K) are wanted")
    return logits.shape[1]
