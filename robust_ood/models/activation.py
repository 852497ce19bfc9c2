"""What stands between the layers of our networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from robust_ood.errors import unknown_name

Activation = Literal["relu", "silu", "elu", "leaky_relu"]
ACTIVATIONS = ("relu", "silu", "elu", "leaky_relu")


def activation_named(name: Activation, *, inplace: bool = False) -> nn.Module:
    """Return the activation of a name.

    Args:
        name: one of `ACTIVATIONS`; the slope of "leaky_relu" is 0.2.
        inplace: whether a ReLU may overwrite its input, which saves memory. The smooth ones need
            theirs for the gradient.

    Raises:
        UserError: unknown name, with the nearest known one.
    """
    check_choice("activation", name, ACTIVATIONS)
    if name == "silu":
        return nn.SiLU()
    if name == "elu":
        return nn.ELU()
    if name == "leaky_relu":
        return nn.LeakyReLU(0.2)
    return nn.ReLU(inplace)


def check_choice(field: str, value: str, choices: Sequence[str]) -> None:
    """Raise `UserError`, naming the field, for a value that is none of the choices."""
    if value not in choices:
        raise unknown_name(field, value, choices)
