"""Real images that need no download: scikit-learn's handwritten digits and its two sample
photographs.

Digits are in-distribution. Patches of one photograph (a palace, sky) are auxiliary outliers;
patches of the other (a flower) are a far OOD test set, so that no method is tested on the picture
it was trained to reject. Held-out digit classes are the near OOD test set of the `digits-0-7`
variant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from robust_ood.data.sets import ImageSet
from robust_ood.randomness import generator

SIZE = 32
_PARTS = {"train": (0.0, 0.6), "validation": (0.6, 0.75), "test": (0.75, 1.0)}
_SEED = 20  # fixes which digit is in which part and where patches are cut; not the training seed


@lru_cache(maxsize=1)
def _all_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the 1,797 digits, 8 x 8 with 17 grey levels, enlarged to 32 x 32 RGB, in a fixed
    shuffled order.
    """
    from sklearn.datasets import load_digits  # a second of start-up that most commands never need

    raw = load_digits()
    grey = torch.from_numpy(raw.images).float().mul(255 / 16)[:, None]  # (N, 1, 8, 8)
    large = F.interpolate(grey, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    images = (
        large.round()
        .clamp(0, 255)
        .to(torch.uint8)
        .expand(-1, 3, -1, -1)
        .permute(0, 2, 3, 1)
        .numpy()
    )
    order = torch.randperm(len(images), generator=generator(_SEED, "digits order")).numpy()
    return np.ascontiguousarray(images[order]), raw.target[order].astype(np.int64)


def digits(part: str, classes: range = range(10), name: str = "digits") -> ImageSet:
    """Return a part of the digits: "train" (60 %), "validation" (15 %) or "test" (25 %), of the
    given classes.
    """
    images, labels = _all_digits()
    low, high = (round(share * len(images)) for share in _PARTS[part])
    chosen = np.flatnonzero(
        np.isin(labels, classes) & (np.arange(len(labels)) >= low) & (np.arange(len(labels)) < high)
    )
    return ImageSet(
        name, images[chosen], labels[chosen] - classes[0], tuple(str(c) for c in classes)
    )


def _held_out() -> ImageSet:
    images, labels = _all_digits()
    return ImageSet("digits-8-9", images[labels >= 8])


def photograph_patches(photograph: str, count: int, name: str, varied: bool = False) -> ImageSet:
    """Return `count` square patches of a sample photograph, 24 to 128 pixels wide, resized to 32 x
    32.

    Args:
        photograph: "china" or "flower".
        count: number of patches; their places are the same in every run.
        name: name of the set.
        varied: also permute colours, invert and mirror at random, so that one photograph's patches
            stand for more pictures than it has.
    """
    from sklearn.datasets import load_sample_image

    photo = (
        torch.from_numpy(load_sample_image(f"{photograph}.jpg").copy()).permute(2, 0, 1).float()
    )  # (3, H, W)
    draw = torch.rand(
        (count, 3), generator=generator(_SEED, "patches", photograph), dtype=torch.float64
    )
    patches = torch.empty((count, SIZE, SIZE, 3), dtype=torch.uint8)
    for patch, (scale, down, right) in zip(patches, draw.tolist(), strict=True):
        width = round(24 * (128 / 24) ** scale)
        top, left = (
            int(down * (photo.shape[1] - width + 1)),
            int(right * (photo.shape[2] - width + 1)),
        )
        crop = photo[None, :, top : top + width, left : left + width]
        small = F.interpolate(
            crop, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
        )
        patch.copy_(small[0].round().clamp(0, 255).permute(1, 2, 0))
    if varied:
        source = generator(_SEED, "variations", photograph)
        for patch in patches:
            colours = torch.randperm(3, generator=source)
            invert, mirror, turn = torch.randint(0, 2, (3,), generator=source).bool()
            seen = patch[..., colours].flip(0) if mirror else patch[..., colours]
            seen = seen.transpose(0, 1) if turn else seen
            patch.copy_(255 - seen if invert else seen)
    return ImageSet(name, patches.numpy())


DIGIT_SETS: dict[str, Callable[[], ImageSet]] = {
    **{f"digits/{part}": partial(digits, part) for part in _PARTS},
    **{f"digits-0-7/{part}": partial(digits, part, range(8), "digits-0-7") for part in _PARTS},
    "digits-0-7/held-out": _held_out,
    "photographs/outliers": partial(
        photograph_patches, "china", 4000, "china-patches", varied=True
    ),
    "photographs/test": partial(photograph_patches, "flower", 1000, "flower-patches"),
}
