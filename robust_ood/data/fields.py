"""The fields of `OODData`, checked: numbers, and sets as they were written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from robust_ood.data.reading import ReadingOptions
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.form import Channels, ImageForm
from robust_ood.data.sources.spec import SetSource, SetSpec, located, read_set
from robust_ood.deprecation import warn_renamed
from robust_ood.errors import UserError
from robust_ood.texts import shown

LARGEST_BATCH = 2**20
"""Images of a batch; more would be drawn for minutes before memory runs out."""


def require_count(field: str, value: int, minimum: int, maximum: int | None = None) -> None:
    """Raise `UserError`, naming the field, for anything but a whole number in a range."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < minimum:
        raise UserError(f"{field}: expected a number >= {minimum}, got {value!r}")
    if maximum is not None and value > maximum:
        raise UserError(f"{field}: expected a number <= {maximum}, got {value}")


def require_batch(field: str, value: int, minimum: int = 1) -> None:
    """Raise `UserError`, naming the field, for what is no number of images of a batch."""
    require_count(field, value, minimum, LARGEST_BATCH)


def check_form(size: int | None, channels: Channels) -> None:
    """Raise `UserError`, naming the field of `data`, for an unusable size or number of channels."""
    try:
        ImageForm(size, channels=channels)
    except UserError as error:
        raise UserError(f"data.{error}") from error


def read_root(root: Path | str) -> Path:
    """Return the folder of the data, with `~` for the user's home."""
    if not isinstance(root, str | Path):
        raise UserError(f"data.root: expected the path of a folder, got {shown(root)}")
    if root == "":
        raise UserError("data.root: is empty; expected the path of a folder ('.' is this one)")
    return located(root, "")


def read_one(field: str, given: SetSource | None) -> str | SetSpec | None:
    """Return the set of a field of `data`, or None; see `read_set`."""
    if given is None:
        return None
    return read_set(f"data.{field}", given)


def read_several(field: str, given: Sequence[SetSource] | None) -> list[str | SetSpec]:
    """Return the sets of a field of `data` that lists some; see `read_set`.

    Raises: `UserError` naming the field, and the set's place in it.
    """
    if given is None:
        return []
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"data.{field}: expected a list of sets, as in [svhn], got {shown(given)}")
    return [read_set(f"data.{field}[{place}]", each) for place, each in enumerate(given)]


@contextmanager
def naming_field(field: str) -> Iterator[None]:
    """Name the config field in errors about its set, unless the message already names a field."""
    try:
        yield
    except UserError as error:
        if str(error).startswith("data."):
            raise
        raise UserError(f"data.{field}: {error}") from error


class DeprecatedReadingOptions(TypedDict, total=False):
    """Arguments of `OODData` that are part of `reading` now; they work for one more release.

    Args:
        workers: deprecated, use reading.workers.
        memory_limit: deprecated, use reading.memory_limit.
        on_device: deprecated, use reading.on_device.
    """

    workers: int
    memory_limit: int
    on_device: bool


def with_deprecated(
    reading: ReadingOptions, deprecated: DeprecatedReadingOptions
) -> ReadingOptions:
    """Return the options with those that were given by their old, flat names."""
    for name in deprecated:
        if name not in DeprecatedReadingOptions.__annotations__:
            raise TypeError(f"OODData got an unexpected keyword argument {name!r}")
        warn_renamed(f"data.{name}", f"data.reading.{name}", stacklevel=4)
    return replace(reading, **deprecated)


def other_form(field: str, images: ImageSet, inliers: ImageSet) -> UserError:
    """Return the error for a set whose images have another size or depth than the inliers'."""
    height, width = images.image_shape
    inlier_height, inlier_width = inliers.image_shape
    if inliers.image_shape != images.image_shape:
        return UserError(
            f"data.{field}: images of {images.name} are {height} x {width}, those of "
            f"{inliers.name} {inlier_height} x {inlier_width}; data.size makes them equal"
        )
    return UserError(
        f"data.{field}: images of {images.name} have {images.channels} channel(s), those "
        f"of {inliers.name} {inliers.channels}; data.channels makes them equal"
    )


_EVALUATED = ("test", "near", "far", "shifted")
"""The parts of data that only evaluations read."""


def evaluated_only(field: str, images: ImageSet) -> ImageSet:
    """Return a set; refuse attacked images as floats in a part that training reads.

    field: of `data`, for the message.
    """
    if images.is_float and field not in _EVALUATED:
        raise UserError(
            f"data.{field}: {images.name} holds attacked images as floats, which are for "
            f"evaluation alone; accepted: data.{', data.'.join(_EVALUATED)}"
        )
    return images
