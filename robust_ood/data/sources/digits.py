"""Real images that need no download: scikit-learn's handwritten digits and its two sample
photographs.

Digits are in-distribution. Patches of one photograph (a palace, sky) are auxiliary outliers;
patches of the other (a flower) are a far OOD test set, so that no method is tested on the picture
that it was trained to reject. Held-out digit classes are the near OOD test set of the `digits-0-7`
variant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.data.sets import ImageSet
from robust_ood.randomness import generator

SIZE = 32
_PARTS = {"train": (0.0, 0.6), "validation": (0.6, 0.75), "test": (0.75, 1.0)}
_SEED = 20  # decides which digit is in which part and where patches are; not the training seed


@lru_cache(maxsize=1)
def _all_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all 1,797 digits and their labels, in a fixed shuffled order.

    They are 8 x 8 with 17 grey levels, enlarged to 32 x 32 RGB.
    """
    from sklearn.datasets import load_digits  # a second of start-up that most commands never need

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float().mul(255 / 16)[:, None]  # (N, 1, 8, 8)
    large = F.interpolate(grey, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    large = large.round().clamp(0, 255).to(torch.uint8)
    images = large.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()  # (N, 32, 32, 3)
    order = torch.randperm(len(images), generator=generator(_SEED, "digits order")).numpy()
    return np.ascontiguousarray(images[order]), raw.target[order].astype(np.int64)


def digits(part: str, classes: range = range(10), name: str = "digits") -> ImageSet:
    """Return the digits of the given classes in one part.

    part: "train" (60 %), "validation" (15 %) or "test" (25 %).
    """
    images, labels = _all_digits()
    start, end = _PARTS[part]
    place = np.arange(len(labels))
    in_part = (place >= round(start * len(labels))) & (place < round(end * len(labels)))
    indices = np.flatnonzero(np.isin(labels, classes) & in_part)
    class_names = tuple(map(str, classes))
    return ImageSet(name, images[indices], labels[indices] - classes[0], class_names)


def _held_out() -> ImageSet:
    images, labels = _all_digits()
    return ImageSet("digits-8-9", images[labels >= 8])


def photograph_patches(photograph: str, count: int, name: str, varied: bool = False) -> ImageSet:
    """Return `count` square patches of a photograph, 24 to 128 pixels wide, resized to 32 x 32.

    Args:
        photograph: "china" or "flower".
        count: number of patches; their places are the same in every run.
        name: name of the set.
        varied: also permute colours, invert and mirror at random, so that one photograph's patches
            stand for more pictures than it has.
    """
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(f"{photograph}.jpg").copy()
    photo = torch.from_numpy(pixels).permute(2, 0, 1).float()  # (3, H, W)
    _, height, width = photo.shape
    source = generator(_SEED, "patches", photograph)
    draw = torch.rand((count, 3), generator=source, dtype=torch.float64)
    patches = torch.empty((count, SIZE, SIZE, 3), dtype=torch.uint8)
    for patch, (scale, down, right) in zip(patches, draw.tolist(), strict=True):
        side = round(24 * (128 / 24) ** scale)
        top = int(down * (height - side + 1))
        left = int(right * (width - side + 1))
        patch.copy_(_shrink(photo[:, top : top + side, left : left + side]))
    if varied:
        source = generator(_SEED, "variations", photograph)
        for patch in patches:
            patch.copy_(_vary(patch, source))
    return ImageSet(name, patches.numpy())


def _shrink(crop: Tensor) -> Tensor:
    """Return a crop `(3, H, W)` as a patch `(32, 32, 3)`."""
    small = F.interpolate(
        crop[None], size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
    )
    return small[0].round().clamp(0, 255).permute(1, 2, 0)


def _vary(patch: Tensor, source: torch.Generator) -> Tensor:
    """Return a patch `(32, 32, 3)` with its colours and its sides exchanged at random."""
    colours = torch.randperm(3, generator=source)
    invert, mirror, transpose = torch.randint(0, 2, (3,), generator=source).bool()
    varied = patch[..., colours]
    if mirror:
        varied = varied.flip(0)
    if transpose:
        varied = varied.transpose(0, 1)
    return 255 - varied if invert else varied


def _digit_sets() -> dict[str, Callable[[], ImageSet]]:
    sets: dict[str, Callable[[], ImageSet]] = {}
    for part in _PARTS:
        sets[f"digits/{part}"] = partial(digits, part)
    for part in _PARTS:
        sets[f"digits-0-7/{part}"] = partial(digits, part, range(8), "digits-0-7")
    sets["digits-0-7/held-out"] = _held_out
    for part in ("validation", "test"):  # of it, to choose settings and to test
        sets[f"digits-8-9/{part}"] = partial(digits, part, range(8, 10), "digits-8-9")
    sets["photographs/outliers"] = partial(
        photograph_patches, "china", 4000, "china-patches", varied=True
    )
    sets["photographs/test"] = partial(photograph_patches, "flower", 1000, "flower-patches")
    return sets


DIGIT_SETS = _digit_sets()
"""Makers of the sets by name."""
