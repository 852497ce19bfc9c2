"""What an attacker may use of a detector, as one object that wrappers pass on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.deprecation import warn_renamed
from robust_ood.errors import UserError

Surrogate = Callable[[Tensor], Tensor]
"""A differentiable stand-in for a score: images `(N, C, H, W)` to values `(N,)`."""


@dataclass(frozen=True)
class AttackSurface:
    """What an attacker may use of a detector that scores images `(N, C, H, W)`.

    Args:
        surrogates: differentiable stand-ins for the score. An attack follows each of them; the
            first is the detector's `surrogate`, the others may lead further on some images.
        exact: whether the first orders images exactly as the score does, so that no attack needs
            to compare both.
        unmoved: stand-ins without the detector's own movement of the image (ODIN, PRO, input
            noise), which published attacks differentiate; None where it moves nothing.
        needs_float32: whether attacks that differentiate the detector in bfloat16 are weaker than
            in float32; they then use float32.
    """

    surrogates: tuple[Surrogate, ...]
    exact: bool = False
    unmoved: tuple[Surrogate, ...] | None = None
    needs_float32: bool = False

    def map(self, change: Callable[[Surrogate], Surrogate]) -> AttackSurface:
        """Return the surface whose stand-ins are all changed alike."""
        unmoved = None
        if self.unmoved is not None:
            unmoved = tuple(change(surrogate) for surrogate in self.unmoved)
        surrogates = tuple(change(surrogate) for surrogate in self.surrogates)
        return replace(self, surrogates=surrogates, unmoved=unmoved)


OLD_NAMES = ("surrogates", "exact_surrogate", "unmoved", "needs_float32")
"""Properties that said the same one by one; a subclass may override them for one more release."""


@typed
def surface_of(detector: Any) -> AttackSurface:
    """Return a detector's attack surface, also that of a class that still overrides old names."""
    if not hasattr(detector, "attack_surface"):
        raise UserError(f"detector: expected a detector, got a {type(detector).__name__}")
    surface: AttackSurface = detector.attack_surface()
    old = {name for name in OLD_NAMES if _overrides(detector, name)}
    if not old:
        return surface
    for name in sorted(old):
        warn_renamed(f"{type(detector).__name__}.{name}", "attack_surface()", stacklevel=2)
    if "surrogates" in old:
        surface = replace(surface, surrogates=tuple(detector.surrogates))
    if "exact_surrogate" in old:
        surface = replace(surface, exact=bool(detector.exact_surrogate))
    if "needs_float32" in old:
        surface = replace(surface, needs_float32=bool(detector.needs_float32))
    if "unmoved" in old and detector.unmoved is not detector:
        surface = replace(surface, unmoved=surface_of(detector.unmoved).surrogates)
    return surface


def _overrides(detector: Any, name: str) -> bool:
    """Whether the detector, or a class between its own and `Detector`, defines the name."""
    # `self.needs_float32 = True` in a constructor.
    if name in vars(detector):
        return True
    for kind in type(detector).__mro__:
        if name in vars(kind):
            return not isinstance(vars(kind)[name], OldName)
    return False


class OldName:
    """A property of `Detector` that warns, and reads the attack surface.

    Args:
        name: the property.
        read: a detector to the property's value. It asks `attack_surface()` and not `surface_of`,
            which would ask an override that calls `super()` without end.
    """

    def __init__(self, name: str, read: Callable[[Any], Any]) -> None:
        self.name = name
        self.read = read

    def __get__(self, detector: Any, kind: type) -> Any:
        if detector is None:
            return self
        warn_renamed(f"{kind.__name__}.{self.name}", "attack_surface()")
        return self.read(detector)
