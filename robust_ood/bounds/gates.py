"""Bounds of a `Gated` network's confidence, by its gate alone or with its classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.bounds.interval import Interval, pixel_interval
from robust_ood.bounds.trace import bound
from robust_ood.errors import UserError
from robust_ood.inputs import accepted, checked
from robust_ood.models import Gated, MixtureRatio, Wrapped
from robust_ood.modes import evaluating


def gated_of(net: nn.Module) -> Gated | None:
    """Return the `Gated` network that a network is, or wraps without normalising; else None."""
    net = getattr(net, "_orig_mod", net)
    if isinstance(net, Wrapped) and isinstance(net.normalize, nn.Identity):
        net = net.module
    return net if isinstance(net, Gated) else None


@typed
def gate_bounds(gated: Gated, images: Tensor, radius: float, norm: str = "Linf") -> Interval:
    """Return bounds of a gate's shifted output over the ball around each image, `(N,)` each.

    Args:
        gated: whose gate is a `MixtureRatio` (closed form) or a network of one output (intervals).
        images: `(N, C, H, W)` in [0, 1].
        radius: of the ball in pixel fractions, >= 0.
        norm: "Linf"; or "L2", of a `MixtureRatio` alone.

    Raises:
        UserError: L2 for another gate; a layer whose bounds are not known.
    """
    images = accepted(checked(images), gated)
    if isinstance(gated.gate, MixtureRatio):
        lower, upper = gated.gate.bounds(images, gated.gate.whitened_radius(radius, norm))
        return Interval(lower + gated.shift, upper + gated.shift)
    if norm != "Linf":
        raise UserError(f"norm: interval bounds are of Linf balls, got {norm!r}")
    outputs = bound(gated.gate, pixel_interval(images, radius)).outputs
    size = len(images)
    return Interval(
        outputs.lower.reshape(size) + gated.shift, outputs.upper.reshape(size) + gated.shift
    )


@typed
def confidence_upper(
    net: nn.Module,
    images: Tensor,
    radius: float,
    temperature: float = 1.0,
    norm: str = "Linf",
) -> Tensor:
    """Return upper bounds of a `Gated` network's confidence, `(N,)` in [1/K, 1].

    `(K - 1) / K sigmoid(ub gate) + 1 / K`, whatever the classifier is. Source: ProoD (Meinke et al.
    2022), Eq. 7; CCU (Meinke and Hein 2020), Theorem 1.

    Args:
        net: a `Gated` network.
        images, radius, norm: as in `gate_bounds`.
        temperature: of the softmax; 1 is the only one that has this bound.

    Raises:
        UserError: another network or temperature, and what `gate_bounds` raises.
    """
    gated = gated_of(net)
    if gated is None:
        raise UserError(f"net: expected models.Gated, got {type(net).__name__}")
    if temperature != 1:
        raise UserError(
            f"temperature: a gated network's bound is of temperature 1, got {temperature}"
        )
    images = accepted(checked(images), gated)
    classes = _count_classes(gated, images)
    upper = gate_bounds(gated, images, radius, norm).upper
    return (classes - 1) / classes * upper.sigmoid() + 1 / classes


def confidence_lower(gated: Gated, images: Tensor, radius: float, classifier: Tensor) -> Tensor:
    """Return lower bounds of a `Gated` network's confidence, `(N,)` in [1/K, 1].

    Args:
        gated, images, radius: as in `gate_bounds`.
        classifier: `(N,)`, lower bounds of the classifier's own confidence.
    """
    classes = _count_classes(gated, images)
    share = gate_bounds(gated, images, radius).lower.sigmoid()
    # Rising in the share, because no confidence is below 1 / K.
    return share * (classifier - 1 / classes) + 1 / classes


def _count_classes(gated: Gated, images: Tensor) -> int:
    with evaluating(gated), torch.no_grad():
        return int(gated(images[:1]).shape[1])
