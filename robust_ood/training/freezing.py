"""Which layers of a network a run trains: all of them, its head, or those that are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from robust_ood.errors import UserError
from robust_ood.models.heads import Head, known_head
from robust_ood.models.outputs import submodule
from robust_ood.models.wrap import Wrapped

ALL = "all"
HEAD = "head"


class Frozen(NamedTuple):
    """What a run leaves as it is.

    modules: those that stay in eval mode. parameters: those that required gradients before.
    """

    modules: tuple[nn.Module, ...]
    parameters: tuple[nn.Parameter, ...]

    def rest(self) -> None:
        """Put the modules into eval mode, whatever a train mode around them has set."""
        for module in self.modules:
            module.training = False

    def release(self) -> None:
        """Have the parameters require gradients again."""
        for parameter in self.parameters:
            parameter.requires_grad_(True)


def freeze(net: nn.Module, trainable: str | Sequence[str]) -> Frozen:
    """Freeze all of a network but the layers that are trained, and return what was frozen.

    Args:
        net: classifier of images `(N, C, H, W)`.
        trainable: "all", "head" (the layer whose output is the logits), or names of layers.

    Raises:
        UserError: a layer that the network does not have or that has no weights, or a head that is
            not known.
    """
    if trainable == ALL:
        return Frozen((), ())
    trained = trained_layers(net, trainable)
    kept = _members(trained)
    modules = tuple(module for module in net.modules() if id(module) not in kept)
    weights = {id(weight) for layer in trained for weight in layer.parameters()}
    parameters = []
    for parameter in net.parameters():
        if id(parameter) not in weights and parameter.requires_grad:
            parameter.requires_grad_(False)
            parameters.append(parameter)
    frozen = Frozen(modules, tuple(parameters))
    frozen.rest()
    return frozen


def trained_layers(net: nn.Module, trainable: str | Sequence[str]) -> list[nn.Module]:
    """Return the layers that are trained; see `freeze`."""
    if trainable == HEAD:
        return [_head(net)]
    names = [trainable] if isinstance(trainable, str) else list(trainable)
    layers = []
    for name in names:
        # Users of `wrap` write the names of what they wrapped.
        inside = net.module if isinstance(net, Wrapped) and not name.startswith("module.") else net
        layer = submodule(inside, name, "optimization.trainable")
        if next(layer.parameters(), None) is None:
            raise UserError(f"optimization.trainable: {name} has no weights to train")
        layers.append(layer)
    return layers


def _head(net: nn.Module) -> nn.Module:
    """Return the layer whose output is the logits."""
    head: Head | None = known_head(net)
    if head is None or head.name is None or not head.exact:
        reason = "it takes no images of a usual size" if head is None else head.head_problem
        raise UserError(
            f"optimization.trainable: which layer is the head is not known ({reason}); name the "
            "layers to train, such as [head, head_dist]"
        )
    return net.get_submodule(head.name)


def _members(layers: Iterable[nn.Module]) -> set[int]:
    """Return the identities of all modules inside layers, and theirs."""
    members: set[int] = set()
    for layer in layers:
        members.update(map(id, layer.modules()))
    return members


@contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient inside the block."""
    parameters = []
    for net in nets:
        parameters += [parameter for parameter in net.parameters() if parameter.requires_grad]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
