"""What the file of a picture has to hold: its facts, and its arrays with their shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from robust_ood.evaluation.kinds import KINDS
from robust_ood.evaluation.picture_settings import Attacked
from robust_ood.evaluation.records import OODGroup, Rate

SideName = Annotated[str, Meta(pattern=r"^(in|near|far)\Z")]
Difference = Annotated[float, Meta(ge=-1, le=1)]

# The axes of each array by a letter; an axis with the same letter has the same length. M: images,
# I, N, F: inliers, near and far outliers, S: sizes, T: steps and the start, U: those of inliers,
# which may be the start alone, P: points, A: clean and the attack through each of E, E: the members
# and the ensemble.
_TRACES = ("scores", "linf", "l2")
_AXES = {
    "shift": {"sizes": "S", "in": "SI", "near": "SN", "far": "SF"},
    "curves": {
        **{f"in_{name}": "UI" for name in _TRACES},
        **{f"near_{name}": "TN" for name in _TRACES},
        **{f"far_{name}": "TF" for name in _TRACES},
    },
    "landscape": {"offsets": "P", "scores": "MPP"},
    "transfer": {"in_scores": "AEI", "near_scores": "AEN", "far_scores": "AEF"},
    "strips": {"clean": "MHWC", "attacked": "MHWC", "before": "M", "after": "M"},
    "errors": {"clean": "MHWC", "scores": "M"},
}
_OPTIONAL = ("near", "far")
"""The sides that a picture may lack; curves and transfers need one of them."""


@dataclass(frozen=True)
class PictureFacts:
    """What the file says beside its arrays; see `robust_ood.evaluation.pictures.Picture`."""

    kind: str
    model: str
    detector: str
    key: str = ""
    label: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CurveFacts:
    """AUROC before, after, and their difference, by group; older files have none."""

    loss_of_auroc: dict[OODGroup, tuple[Rate, Rate, Difference]] = field(default_factory=dict)
    attacked: Attacked = "both"


@dataclass(frozen=True)
class TransferFacts:
    """Whose attacks and scores the arrays have, the ensemble aside, and under which attack."""

    members: list[str]
    attack: str
    attacked: Attacked = "both"


@dataclass(frozen=True)
class ImageFacts:
    """The side and the set of each image."""

    groups: list[SideName]
    sets: list[str]


@dataclass(frozen=True)
class StripFacts(ImageFacts):
    """Those of images under an attack."""

    attack: str


@dataclass(frozen=True)
class FailedFacts:
    """Why there are no arrays."""

    failed: str


_ABOUT = {
    "curves": CurveFacts,
    "transfer": TransferFacts,
    "landscape": ImageFacts,
    "strips": StripFacts,
    "errors": ImageFacts,
}


def checked_facts(content: Any, arrays: Mapping[str, NDArray[Any]]) -> PictureFacts:
    """Return the facts of a picture whose arrays fit them.

    Raises: `ValueError` naming the field or the array.
    """
    facts = msgspec.convert(content, PictureFacts)
    if facts.kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {facts.kind!r}")
    if "failed" in facts.about:
        msgspec.convert(facts.about, FailedFacts)
    else:
        check_drawing(facts.kind, arrays, facts.about)
    return facts


def check_drawing(kind: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless arrays and settings are those of a kind of picture."""
    lengths = _lengths(arrays, _expected(kind, arrays))
    if kind in _ABOUT:
        facts: Any = msgspec.convert(about, _ABOUT[kind])
        if isinstance(facts, ImageFacts):
            for name, entries in (("groups", facts.groups), ("sets", facts.sets)):
                if len(entries) != lengths["M"]:
                    raise ValueError(f"{name}: expected {lengths['M']}, got {len(entries)}")
        if isinstance(facts, TransferFacts) and len(facts.members) != lengths["E"] - 1:
            raise ValueError(f"members: expected {lengths['E'] - 1}, got {len(facts.members)}")
    for name in ("clean", "attacked"):
        if name in _AXES[kind]:
            _check_pixels(name, arrays[name])


def _expected(kind: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Return the axes of the arrays that a picture must have, by name."""
    expected = dict(_AXES[kind])
    absent = []
    for side in _OPTIONAL:
        names = [name for name in expected if name.split("_")[0] == side]
        if not any(name in arrays for name in names):
            absent += names
    outliers_needed = kind in ("curves", "transfer")
    if outliers_needed and not any(name.split("_")[0] in _OPTIONAL for name in arrays):
        raise ValueError("expected arrays of near or far outliers, got none")
    for name in absent:
        del expected[name]
    return expected


def _lengths(arrays: Mapping[str, NDArray[Any]], expected: Mapping[str, str]) -> dict[str, int]:
    """Return the length of each axis by its letter."""
    lengths: dict[str, int] = {}
    for name, axes in expected.items():
        if name not in arrays:
            raise ValueError(f"it lacks the array {name}")
        array = arrays[name]
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name}: expected numbers, got {array.dtype}")
        if array.ndim != len(axes) or not array.size:
            raise ValueError(f"{name}: expected {len(axes)} axes, got shape {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        _compare(name, array.shape, axes, lengths)
    return lengths


def _compare(name: str, shape: Sequence[int], axes: str, lengths: dict[str, int]) -> None:
    for axis, length in zip(axes, shape, strict=True):
        if lengths.setdefault(axis, length) != length:
            raise ValueError(f"{name}: expected length {lengths[axis]}, got shape {tuple(shape)}")


def _check_pixels(name: str, pixels: NDArray[Any]) -> None:
    if pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{name}: expected bytes of 1 or 3 channels, got {pixels.dtype}")
