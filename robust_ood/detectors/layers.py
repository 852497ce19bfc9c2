"""Which layers of a network a detector reads, and how their feature maps become vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.outputs import submodule
from robust_ood.models.wrap import Network, as_network

PENULTIMATE = "penultimate"
Layers = str | Sequence[str]


def named(net: Network, layers: Layers) -> tuple[str, ...]:
    """Return the names of the layers to read.

    Args:
        net: classifier.
        layers: "penultimate", the name of a submodule, several of either, or "all" for the
            network's `feature_layers`.

    Raises:
        UserError: a name that the network does not have (with the nearest one), none, or one given
            twice.
    """
    names = _listed(net, layers)
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"layers: expected one or more layers without duplicates, got {list(names)}"
        )
    for name in names:
        if name != PENULTIMATE:
            submodule(as_network(net), name)
    return names


def _listed(net: Network, layers: Layers) -> tuple[str, ...]:
    if layers == "all":
        names = tuple(getattr(net, "feature_layers", ()))
        if not names:
            raise UserError(
                f"layers: {type(net).__name__} does not name its feature layers; "
                "list them, or give them to models.wrap"
            )
        return names
    if isinstance(layers, str):
        return (layers,)
    return tuple(layers)


def vectors(out: Outputs, layer: str) -> Tensor:
    """Return a layer's features as vectors `(N, D)`.

    Maps `(N, C, ...)` are averaged over pixels, tokens `(N, T, D)` over tokens.
    """
    features = out.features if layer == PENULTIMATE else out.maps[layer]
    if features.dim() == 3:
        return features.mean(1)  # (N, T, D) -> (N, D)
    if features.dim() > 3:
        return features.flatten(2).mean(2)  # (N, C, ...) -> (N, C)
    return features
