"""How configs write our own types."""

from __future__ import annotations

from jsonargparse.typing import register_type

from robust_ood.cli.long_form import register_loader
from robust_ood.regions import Fraction


def register_types() -> None:
    """Let configs write a number, such as a radius, as `8/255`; it is read as a plain float."""
    register_loader()
    register_type(
        Fraction,
        serializer=float,
        deserializer=lambda value: float(Fraction(value)),
        type_check=lambda value, _: isinstance(value, float),
        fail_already_registered=False,
    )
