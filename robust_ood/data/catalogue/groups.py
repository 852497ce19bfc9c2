"""Which data sets are near and far OOD for which in-distribution set."""

from __future__ import annotations

from typing import NamedTuple


class Groups(NamedTuple):
    """Names of OOD test sets: `near` ones resemble the in-distribution, `far` ones do not."""

    near: tuple[str, ...]
    far: tuple[str, ...]


_ALOE = ("svhn", "textures", "places365", "lsun-crop", "lsun-resize", "isun")

GROUPS: dict[str, Groups] = {
    "cifar10": Groups(("cifar100", "tinyimagenet"), ("mnist", *_ALOE)),
    "cifar100": Groups(("cifar10", "tinyimagenet"), ("mnist", *_ALOE)),
    "gtsrb": Groups((), (*_ALOE, "cifar10")),
    "imagenet": Groups(("ssb-hard", "ninco"), ("inaturalist", "textures", "openimage-o")),
}
"""Near and far by in-distribution set: OpenOOD's benchmarks, and as far sets also those of the ALOE
paper.
"""
