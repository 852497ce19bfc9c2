"""The first images of a set, or drawn ones where the first are of few of its classes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.data.sets import ImageSet
from robust_ood.randomness import generator


def limited(images: ImageSet, limit: int | None) -> ImageSet:
    """Return a set of at most `limit` images, always the same ones, in their order.

    They are the first ones. Where the set is sorted by class and the first ones lack some of its
    classes, they are drawn from all images instead.

    Args:
        images: the set.
        limit: a number of images >= 1; None for all.
    """
    if limit is None or limit >= len(images):
        return images
    if not must_draw(images, limit):
        return images.subset(np.arange(limit))
    drawn = torch.randperm(len(images), generator=generator(0, "limit"))[:limit]
    return images.subset(drawn.sort().values.numpy())


def must_draw(images: ImageSet, limit: int | None) -> bool:
    """Return whether the first images of a set would stand for only some of its classes."""
    if limit is None or limit >= len(images) or images.labels is None:
        return False
    labels = np.asarray(images.labels)
    few = len(np.unique(labels[:limit])) < len(np.unique(labels))
    return few and _is_sorted(labels)


def _is_sorted(labels: NDArray[np.int64]) -> bool:
    """Return whether neighbours are of one class far more often than in a shuffled set.

    Shuffled sets keep their first images, however few they are and whatever classes they lack.
    """
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    changes = np.count_nonzero(np.diff(labels))
    by_chance = (len(labels) - 1) * (1 - np.sum(shares**2))
    return bool(changes < max(len(shares), by_chance / 2))
