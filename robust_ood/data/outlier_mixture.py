"""Auxiliary outliers from several sources, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.joined import JoinedStorage
from robust_ood.data.sources.spec import SetSource, SetSpec, read_set
from robust_ood.data.storage import ImageStorage
from robust_ood.errors import UserError
from robust_ood.settings import configured
from robust_ood.texts import shown

OutlierSources = SetSource | list[dict[str, Any]]
"""Auxiliary outliers as configs write them: a set, or `[{set: ..., weight: ...}, ...]`."""


@dataclass(frozen=True)
class OutlierMixture:
    """Sources of outliers as they were written, and the weight of each.

    Args:
        sets: names, paths or settings of the sets.
        weights: how often each is drawn from in proportion to the others, > 0; any sum.
    """

    sets: tuple[str | SetSpec, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class MixedSet(ImageSet):
    """The images of several sets, one set after the other.

    Args:
        lengths: images of each.
        weights: how often training draws from each in proportion to the others.
    """

    lengths: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def read_outliers(
    field: str, given: OutlierSources | None
) -> str | SetSpec | OutlierMixture | None:
    """Return auxiliary outliers as they were written: a set, or several with weights.

    Args:
        field: the dotted name of where it was written, for messages.
        given: what was written.

    Raises:
        UserError: an empty list, something that is no set, or a weight that is not > 0.
    """
    if given is None:
        return None
    if isinstance(given, str | SetSpec) or not isinstance(given, Sequence):
        return read_set(field, given)
    if not given:
        raise UserError(
            f"{field}: is an empty list; expected sets as in [{{set: svhn, weight: 1}}]"
        )
    sets = []
    weights = []
    for place, source in enumerate(given):
        name = f"{field}[{place}]"
        if not isinstance(source, Mapping) or "set" not in source:
            raise UserError(f"{name}: expected {{set: ..., weight: ...}}, got {shown(source)}")
        made = configured(name, _source, settings=dict(source))
        sets.append(read_set(f"{name}.set", made[0]))
        weights.append(_weight(f"{name}.weight", made[1]))
    return OutlierMixture(tuple(sets), tuple(weights))


def specs_of(outliers: str | SetSpec | OutlierMixture | None) -> tuple[str | SetSpec, ...]:
    """Return the sets that outliers are of."""
    if outliers is None:
        return ()
    if isinstance(outliers, OutlierMixture):
        return outliers.sets
    return (outliers,)


def mixed(parts: Sequence[ImageSet], weights: Sequence[float]) -> MixedSet:
    """Return sets as one, with a weight for each.

    Args:
        parts: sets of images, of one height, width and number of channels.
        weights: of each, > 0.

    Raises:
        UserError: images of different sizes or numbers of channels.
    """
    first = parts[0]
    for place, part in enumerate(parts):
        if part.input_shape != first.input_shape:
            raise UserError(
                f"data.outliers[{place}]: images of {part.name} are {part.input_shape}, those of "
                f"{first.name} {first.input_shape} (channels, height, width); data.size and "
                "data.channels make them equal"
            )
    images: ImageStorage = JoinedStorage([part.images for part in parts])
    if all(part.in_memory for part in parts):
        images = np.concatenate([part.images for part in parts])
    return MixedSet(
        "+".join(part.name for part in parts),
        images,
        max_unreadable=max(part.max_unreadable for part in parts),
        lengths=tuple(len(part) for part in parts),
        weights=tuple(weights),
    )


def _source(set: Any, weight: float = 1.0) -> tuple[Any, float]:  # noqa: A002  # the config's key
    return set, weight


def _weight(field: str, weight: Any) -> float:
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < math.inf:
        raise UserError(
            f"{field}: expected a finite number > 0, got {shown(weight)}; weights count in "
            "proportion to one another, whatever their sum"
        )
    return float(weight)
