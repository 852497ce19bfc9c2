"""Any classifier, with normalisation in front and its head and feature layers named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.deprecation import warn_renamed
from robust_ood.errors import UserError
from robust_ood.inputs import logits_of
from robust_ood.models.blocks import checkpoint_blocks
from robust_ood.models.heads import as_linear, candidates, is_linear, known_head, likely_head
from robust_ood.models.normalize import Normalize, resized
from robust_ood.models.outputs import find_layers, submodule


class Function(nn.Module):
    """A plain function of images as a network.

    Args:
        function: images `(N, C, H, W)` in [0, 1] to logits `(N, K)`. Gradients pass, where it has
            any.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        """Return what the function gives: logits `(N, K)`."""
        return self.function(images)


_functions: WeakValueDictionary[Callable[[Tensor], Any], Function] = WeakValueDictionary()


Network = nn.Module | Callable[[Tensor], Any]
"""A module, or a function of images."""


def as_network(net: Network, field: str = "net") -> nn.Module:
    """Return a network as it is, and a function as a network, the same one each time.

    Raises: `UserError` for what cannot be called.
    """
    if isinstance(net, nn.Module):
        return net
    if isinstance(net, type) or not callable(net):
        kind = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
        raise UserError(f"{field}: expected a torch.nn.Module or a function of images, got {kind}")
    network = _functions.get(net)
    if network is None:
        network = Function(net)
        _functions[net] = network
    return network


class Wrapped(nn.Module):
    """Somebody's classifier behind our contract: images in [0, 1] to logits.

    Logits inside of an object, tuple or mapping that the classifier returns are taken out.

    Args:
        module: the classifier.
        mean, std: normalisation of its inputs, one value a channel in pixel fractions; None where
            the module expects pixels or normalises itself.
        head: name of its last linear layer, or of a 1 x 1 convolution that is averaged over pixels;
            by default the one registered last, until `find_layers` is called.
        layers: names of the submodules that are its conventional feature maps; none until
            `find_layers` is called.
        size: height and width to which images are resized first, bilinearly and antialiased, so
            that a network of one resolution takes images of any; None for the images' own. Attacks
            stay in the pixels that are given.
        checkpointed: keep only what enters the network's repeated blocks for the backward pass, and
            compute the rest again: less memory, a third more time, the same gradients.
    """

    pretrained = False
    """Whether the module comes with its weights, so that no file is needed."""
    size: int | None = None
    """Height and width to which images are resized; None for the images' own."""

    @typed
    def __init__(
        self,
        module: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        head: str | None = None,
        layers: Sequence[str] = (),
        size: int | None = None,
        checkpointed: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise UserError(f"module: expected a torch.nn.Module, got a {type(module).__name__}")
        if (mean is None) != (std is None):
            raise UserError("mean and std: one is given without the other")
        if size is not None and size < 1:
            raise UserError(f"size: expected a number of pixels >= 1, got {size}")
        if size is not None:  # stored scores of other networks know no such attribute
            self.size = size
        self.normalize = nn.Identity() if mean is None or std is None else Normalize(mean, std)
        self.module = module
        for name in layers:
            submodule(module, name)
        self._searches_head = head is None
        self.pretrained = bool(getattr(module, "pretrained", False))
        self.head_name = _head_name(module, head)
        self.feature_layers: tuple[str, ...] = _inside(layers)
        if checkpointed:
            checkpoint_blocks(module)

    @property
    def head(self) -> nn.Linear:
        """The last linear layer. Raises: `UserError` where there is none."""
        if self.head_name is None:
            raise UserError(f"head: {type(self.module).__name__} has no linear layer")
        return as_linear(self.module.get_submodule(self.head_name))

    @property
    def given_head(self) -> str | None:
        """The name in this network of the head that was given; None where it is to be found."""
        if self._searches_head:
            return None
        return f"module.{self.head_name}".rstrip(".")

    def find_layers(self, image_shape: Sequence[int]) -> str:
        """Find the head and feature layers that were not named, and return all of them in words.

        Args:
            image_shape: channels, height and width of the images, without channels three; a few
                forward passes of random ones are made.

        Raises:
            UserError: the module cannot take such images, or gives something else than logits `(N,
                K)`.
        """
        found = find_layers(self, image_shape)
        head = known_head(self)
        if self._searches_head and head is not None:
            self.head_name = None
            if head.name is not None:
                self.head_name = head.name.removeprefix("module").removeprefix(".")
        layers_given = bool(self.feature_layers)
        if not layers_given:
            self.feature_layers = found.layers
        layers = ", ".join(name.removeprefix("module.") for name in self.feature_layers) or "none"
        layers_origin = "given" if layers_given else "found"
        inputs = "pixels" if isinstance(self.normalize, nn.Identity) else "normalised images"
        return (
            f"{_kind(self.module)}, fed {inputs}: {self._head_in_words(found.head is not None)}; "
            f"feature layers {layers} ({layers_origin})"
        )

    def _head_in_words(self, exact: bool) -> str:
        if self.head_name is None:
            return "no linear head, scores of the logits alone work"
        layer = self.module.get_submodule(self.head_name)
        head = as_linear(layer)
        origin = "found" if self._searches_head else "given"
        doubt = ""
        if not exact:
            doubt = ", whose output is not the logits: detectors that read its weights are refused"
        average = "" if isinstance(layer, nn.Linear) else ", averaged over pixels"
        size = f"{head.in_features} to {head.out_features}{average}"
        return f"head {self.head_name} ({size}, {origin}){doubt}"

    def find_parts(self, image_shape: Sequence[int]) -> str:
        """Call `find_layers`, under its former name."""
        warn_renamed("Wrapped.find_parts", "Wrapped.find_layers")
        return self.find_layers(image_shape)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(N, K)` of images `(N, C, H, W)` in [0, 1]."""
        if self.size is not None:
            images = resized(images, self.size)
        logits: Tensor = logits_of(self.module(self.normalize(images)))
        return logits


def _head_name(module: nn.Module, head: str | None) -> str | None:
    """Return the name of a classifier's head: the given, or the layer that is likely to be it."""
    if head is None:
        return likely_head(module, candidates(module))
    layer = submodule(module, head, "head")
    if not is_linear(layer):
        raise UserError(
            f"head: {head} is a {type(layer).__name__}, not a linear layer or 1 x 1 convolution"
        )
    return head


def _kind(module: nn.Module) -> str:
    """Return what a module is, for a text: its class, or its function."""
    if isinstance(module, Function):
        return str(getattr(module.function, "__name__", type(module.function).__name__))
    return type(module).__name__


def _inside(layers: Sequence[str]) -> tuple[str, ...]:
    """Return the names that a wrapped module's layers have in the network around it."""
    return tuple(f"module.{name}" for name in layers)


@typed
def wrap(
    module: nn.Module | Callable[[Tensor], Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    head: str | None = None,
    layers: Sequence[str] = (),
    size: int | None = None,
    checkpointed: bool = False,
) -> Wrapped:
    """Return `Wrapped(...)`; see there.

    Args:
        module: the classifier, or a plain function of images `(N, C, H, W)` that gives logits.
        mean, std, head, layers, size, checkpointed: as there.
    """
    network = as_network(module, "module")
    return Wrapped(network, mean, std, head, layers, size, checkpointed)
