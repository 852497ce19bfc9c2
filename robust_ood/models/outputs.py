"""One forward pass of any classifier, and everything that a detector may need from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from robust_ood.arguments import typed
from robust_ood.errors import UserError, unknown_name
from robust_ood.inputs import accepted, as_batch, logits_of
from robust_ood.models.heads import Head, as_linear, given_input, head_of, pooled
from robust_ood.models.probing import (
    channel_problem,
    class_name,
    images_to_try,
    side_problem,
    trying,
)
from robust_ood.texts import first_sentence


class Missing(NamedTuple):
    """What stands for a part that a network does not have: the reason, in one line."""

    reason: str


class _Parts(NamedTuple):
    logits: Tensor
    features: Any
    head: Any
    maps: dict[str, Tensor]


class Outputs(_Parts):
    """The results of one forward pass.

    logits: `(N, K)`. features: the head's input `(N, D)`. head: the linear layer between them.
    maps: feature maps by layer name, `(N, C, H, W)`.

    Reading `features` or `head` of a network that has none raises `UserError`.
    """

    @property
    def features(self) -> Tensor:
        """The head's input `(N, D)`, averaged over pixels or tokens."""
        features: Tensor = _present(self[1])
        return features

    @property
    def head(self) -> nn.Linear:
        """The linear layer whose output is the logits."""
        head: nn.Linear = _present(self[2])
        return head

    @property
    def has_features(self) -> bool:
        """Whether there are features `(N, D)` to read."""
        return not isinstance(self[1], Missing)


def _present(part: Any) -> Any:
    if isinstance(part, Missing):
        raise UserError(part.reason)
    return part


@typed
def outputs(net: nn.Module, images: Tensor, layers: Sequence[str] = ()) -> Outputs:
    """Return logits, features, head and chosen feature maps of one differentiable forward pass.

    A module that is called several times in the pass gives the map of its last call. What
    `torch.compile` returned runs uncompiled here, because compiled code calls no hooks. A network
    without a linear head has logits and maps alone.

    Args:
        net: any classifier, `(N, C, H, W)` to `(N, K)`.
        images: `(N, C, H, W)`.
        layers: dotted names of the submodules whose outputs to return.

    Raises:
        UserError: an unknown layer, images of another number of channels than the network's, or
            something else than logits.
    """
    net = getattr(net, "_orig_mod", net)
    modules = {name: submodule(net, name) for name in layers}
    images = accepted(as_batch(images), net)
    head = head_of(net, images)
    if head is None:  # the pass says why, or the network takes no two images
        head = Head(None, exact=False, classes=0, net=class_name(net))
    layer = None if head.name is None else net.get_submodule(head.name)
    given: list[Tensor] = []  # to the head, in its last call
    maps: dict[str, Tensor] = {}

    def keep_input(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given[:] = [given_input(inputs, keywords)]

    def keep_output(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise UserError(f"layers: {name} gives a {type(output).__name__}, not one tensor")
            maps[name] = output.clone()  # an in-place ReLU may follow

        return hook

    hooks: list[RemovableHandle] = []
    try:
        if layer is not None:
            hooks.append(layer.register_forward_pre_hook(keep_input, with_kwargs=True))
        for name, module in modules.items():
            hooks.append(module.register_forward_hook(keep_output(name)))
        logits = _logits(net, images)
    finally:
        for handle in hooks:
            handle.remove()
    return _collected(head, layer, given, logits, maps)


def _collected(
    head: Head,
    layer: nn.Module | None,
    given: list[Tensor],
    logits: Tensor,
    maps: dict[str, Tensor],
) -> Outputs:
    """Return what a pass gave, with the reason in place of what the network does not have."""
    if layer is None or not given:
        problem = head._replace(name=None, classes=logits.shape[1]).features_problem
        return Outputs(logits, Missing(problem), Missing(problem), maps)
    features = pooled(layer, given[0])
    if head.head_problem:
        return Outputs(logits, features, Missing(head.head_problem), maps)
    return Outputs(logits, features, as_linear(layer), maps)


def _logits(net: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of a pass, or raise `UserError` for what a network gives instead."""
    try:
        logits = logits_of(net(images))
    except (RuntimeError, ValueError, AssertionError) as error:
        problem = channel_problem(net, images) or side_problem(net, images)
        other = isinstance(error, UserError) or "out of memory" in str(error)
        if problem and not other:
            raise UserError(problem) from error
        raise
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UserError(f"net: {class_name(net)} gives {_kind_of(logits)}; expected logits (N, K)")
    if logits.shape[1] < 2:
        raise UserError(f"net: {class_name(net)} gives one logit; expected one of each class")
    return logits


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

    head: name of the layer whose output, averaged over pixels, is the logits; None where there is
    no such layer.
    layers: names of the last modules at each resolution, in order.
    """

    head: str | None
    layers: tuple[str, ...]


@typed
def find_layers(net: nn.Module, image_shape: Sequence[int]) -> Layers:
    """Return a classifier's head and feature layers, as a run on random images shows.

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

    images = _images(net, image_shape)
    accepted(images, net)  # a trial pass would count as a second call
    head = head_of(net, images)
    for name, module in net.named_modules():
        if name:
            hooks.append(module.register_forward_hook(record(name)))
    try:
        trial_logits(net, image_shape)
    finally:
        for handle in hooks:
            handle.remove()
    names = [name for name, _ in calls]
    deepest = _first_level(net) + 1
    by_resolution: dict[tuple[int, int], str] = {}
    for name, output in calls:
        called_once = names.count(name) == 1
        if name.count(".") <= deepest and called_once and _is_map(output, image_shape):
            by_resolution[output.shape[2:]] = name
    exact = head.name if head is not None and head.exact else None
    return Layers(exact, tuple(sorted(by_resolution.values(), key=names.index)))


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


@typed
def count_classes(net: nn.Module, image_shape: Sequence[int]) -> int:
    """Return how many logits a network gives for random images.

    image_shape: their channels, height and width; without channels, three.

    Raises: `UserError` where the network cannot take such images, does not give `(N, K)`, or gives
        NaN.
    """
    return trial_logits(net, image_shape).shape[1]


def _images(net: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return two random images on the network's device and of its precision."""
    if len(image_shape) not in (2, 3) or min(image_shape) < 1:
        raise UserError(f"image_shape: expected (C, H, W) or (H, W), got {tuple(image_shape)}")
    *channels, height, width = image_shape
    return next(images_to_try(net, channels[0] if channels else 3, (height, width)))


def trial_logits(net: nn.Module, image_shape: Sequence[int]) -> Tensor:
    """Return the logits `(2, K)` of two random images, in eval mode.

    image_shape: their channels, height and width; without channels, three.

    Raises: `UserError` where the network cannot take such images, does not give `(N, K)`, or gives
        NaN.
    """
    images = _images(net, image_shape)
    try:
        with trying(net, images):
            logits = logits_of(net(accepted(images, net)))
    except UserError as error:
        problem = channel_problem(net, images)
        if problem:
            raise UserError(problem) from error
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        size = " x ".join(str(length) for length in images.shape[1:])
        raise UserError(
            channel_problem(net, images)
            or side_problem(net, images)
            or f"net: {class_name(net)} cannot take {size} images ({first_sentence(error)})"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != 2:
        raise UserError(
            f"net: {class_name(net)} gives {_kind_of(logits)} for 2 images; expected logits (2, K)"
        )
    if bool(logits.isnan().any()):
        raise UserError(f"net: {class_name(net)} gives NaN for random images{_nan_weights(net)}")
    return logits


def _nan_weights(net: nn.Module) -> str:
    """Return which weight holds NaN, for a message; "" where none does."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            return f"; its weights hold NaN, {name} first"
    return ""
