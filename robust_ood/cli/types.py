"""How configs write our own types."""

from __future__ import annotations

from jsonargparse.typing import register_type

from robust_ood.cli.long_form import register_loader
from robust_ood.regions import Fraction


def register_types() -> None:
    """Let configs write a radius or a step size as `8/255`; what they hold from then on is the
    plain number.
    """
    register_loader()
    register_type(
        Fraction,
        serializer=float,
        deserializer=lambda value: float(Fraction(value)),
        type_check=lambda value, _: isinstance(value, float),
        fail_already_registered=False,
    )
