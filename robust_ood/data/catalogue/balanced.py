"""Classes brought to the same number of images by warped copies: rotated, moved and seen from
elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.data.catalogue.entry import Layout
from robust_ood.data.files import Fit
from robust_ood.data.sets import ImageSet, ImageStorage
from robust_ood.randomness import generator

ROTATION = math.radians(15)
"""Largest rotation, to either side."""
SHIFT = 0.1
"""Largest translation in each direction, as a share of the image's side."""
TILT = 0.1
"""Largest shift of each corner in each direction, as a share of the image's side: the
projection.
"""
_SEED = 43


def balanced(layout: Layout, count: int) -> Layout:
    """Return the layout whose every class has `count` images: each image once, then warped copies
    of them in turn.

    Source: the ALOE paper's GTSRB, "rotation, translation, and projection transforms" until each
    class has 10,000. It does not state the transforms' ranges; they are ours. A class with more
    images keeps its first `count`.
    """

    def read(folder: Path, fit: Fit | None, name: str) -> ImageSet:
        images = layout(folder, fit, name)
        assert images.labels is not None
        sources = [
            np.resize(np.flatnonzero(images.labels == label), count)
            for label in np.unique(images.labels)
        ]
        chosen = np.concatenate(sources)
        firsts = [
            np.arange(count) < (images.labels == label).sum() for label in np.unique(images.labels)
        ]
        storage = Warped(images.images, chosen, ~np.concatenate(firsts))
        return replace(images, images=storage, labels=images.labels[chosen], unreadable={})

    return read


class Warped:
    """A storage of some images of another, each warped or left as it is; a warp is a pure function
    of its place here.

    Args:
        images: the images to choose from.
        chosen: `(N,)`, which image stands at each place.
        warped: `(N,)`, whether it is warped there.
        seed: of the warps.
    """

    def __init__(
        self,
        images: ImageStorage,
        chosen: NDArray[np.int64],
        warped: NDArray[np.bool_],
        seed: int = _SEED,
    ) -> None:
        self.images, self.chosen, self.warped = images, chosen, warped
        self.dtype, self.shape = images.dtype, (len(chosen), *images.shape[1:])
        draws = torch.rand(
            (len(chosen), 11), generator=generator(seed, "warps"), dtype=torch.float32
        )
        self._draws = draws.mul_(2).sub_(1)  # rotation, 2 of translation, 8 of the corners

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        wanted = np.atleast_1d(np.asarray(indices))
        result = np.array(self.images[self.chosen[wanted]])
        which = np.flatnonzero(self.warped[wanted])
        if len(which):
            result[which] = warp(
                torch.from_numpy(result[which]), self._draws[wanted[which]]
            ).numpy()
        return result


def warp(images: Tensor, draws: Tensor) -> Tensor:
    """Return `uint8 (n, H, W, 3)` images warped by `draws (n, 11)` in [-1, 1]; edges are continued
    outwards.
    """
    count, height, width, _ = images.shape
    maps = _homographies(
        draws.double()
    ).float()  # (n, 3, 3), from places in the result to places in the image
    down, right = torch.meshgrid(_centres(height), _centres(width), indexing="ij")
    places = torch.stack([right, down, torch.ones_like(down)], -1).reshape(
        1, -1, 3
    )  # (1, H * W, 3)
    moved = places @ maps.transpose(1, 2)  # (n, H * W, 3)
    grid = (moved[..., :2] / moved[..., 2:]).reshape(count, height, width, 2)
    pixels = images.permute(0, 3, 1, 2).float()
    found = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _centres(size: int) -> Tensor:
    """Return the centres of `size` pixels on the interval [-1, 1]."""
    return (torch.arange(size) + 0.5) * 2 / size - 1


def _homographies(draws: Tensor) -> Tensor:
    """Return the projective maps `(n, 3, 3)` that take the square's corners where the draws say."""
    square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=draws.dtype)
    angle = draws[:, 0] * ROTATION
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    # Sides are 2 long, so a share of the side counts twice.
    corners = (
        square @ turn.transpose(1, 2)
        + 2 * SHIFT * draws[:, None, 1:3]
        + 2 * TILT * draws[:, 3:].view(-1, 4, 2)
    )
    rows = []
    for (x, y), target in zip(square, corners.unbind(1), strict=True):
        u, v = target[:, 0], target[:, 1]
        one, nil = torch.ones_like(u), torch.zeros_like(u)
        rows += [torch.stack([x * one, y * one, one, nil, nil, nil, -u * x, -u * y], -1)]
        rows += [torch.stack([nil, nil, nil, x * one, y * one, one, -v * x, -v * y], -1)]
    solved = torch.linalg.solve(torch.stack(rows, 1), corners.flatten(1))  # (n, 8)
    return torch.cat([solved, torch.ones_like(solved[:, :1])], 1).view(-1, 3, 3)
