"""Which data sets are near and far OOD for which in-distribution set."""

from __future__ import annotations

from typing import NamedTuple


class OODGroups(NamedTuple):
    """Names of OOD test sets: `near` ones resemble the in-distribution, `far` ones do not."""

    near: tuple[str, ...]
    far: tuple[str, ...]


_ALOE = ("svhn", "textures", "places365", "lsun-crop", "lsun-resize", "isun")

GROUPS: dict[str, OODGroups] = {
    "cifar10": OODGroups(("cifar100", "tinyimagenet"), ("mnist", *_ALOE)),
    "cifar100": OODGroups(("cifar10", "tinyimagenet"), ("mnist", *_ALOE)),
    "gtsrb": OODGroups((), (*_ALOE, "cifar10")),
    "imagenet": OODGroups(("ssb-hard", "ninco"), ("inaturalist", "textures", "openimage-o")),
}
"""Near and far OOD test sets by in-distribution set: OpenOOD's benchmarks, and as far sets also
those of the ALOE paper. `robust-ood data download NAME --ood true` downloads them.
"""
