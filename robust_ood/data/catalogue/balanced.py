"""Classes brought to the same number of images by warped copies: rotated, moved and projected."""

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
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.form import ImageForm
from robust_ood.data.storage import ImageStorage
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
    """Return the layout with `count` images in each class: each image once, then warped copies.

    Source: the ALOE paper's GTSRB, "rotation, translation, and projection transforms" until each
    class has 10,000. It does not state the transforms' ranges; they are ours. A class with more
    images keeps its first `count`.
    """

    def read(folder: Path, form: ImageForm, name: str) -> ImageSet:
        images = layout(folder, form, name)
        assert images.labels is not None
        indices = []
        warped = []
        for label in np.unique(images.labels):
            members = np.flatnonzero(images.labels == label)
            indices.append(np.resize(members, count))  # repeated in turn
            warped.append(np.arange(count) >= len(members))
        chosen = np.concatenate(indices)
        storage = WarpedStorage(images.images, chosen, np.concatenate(warped))
        return replace(images, images=storage, labels=images.labels[chosen], unreadable={})

    return read


class WarpedStorage:
    """Some images of another storage, each warped or unchanged.

    A warp is a pure function of its place here.

    Args:
        images: the images to choose from.
        indices: `(N,)`, which image is at each place.
        warped: `(N,)`, whether it is warped there.
        seed: seed of the warps.
    """

    def __init__(
        self,
        images: ImageStorage,
        indices: NDArray[np.int64],
        warped: NDArray[np.bool_],
        seed: int = _SEED,
    ) -> None:
        self.images = images
        self.indices = indices
        self.warped = warped
        self.dtype = images.dtype
        self.shape = (len(indices), *images.shape[1:])
        # In [-1, 1]: one for the rotation, 2 for the translation, 8 for the corners.
        source = generator(seed, "warps")
        draws = torch.rand((len(indices), 11), generator=source, dtype=torch.float32)
        self._draws = draws.mul_(2).sub_(1)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        places = np.atleast_1d(np.asarray(indices))
        images = np.array(self.images[self.indices[places]])
        warped = np.flatnonzero(self.warped[places])
        if len(warped):
            originals = torch.from_numpy(images[warped])
            images[warped] = warp(originals, self._draws[places[warped]]).numpy()
        return images


def warp(images: Tensor, draws: Tensor) -> Tensor:
    """Return images warped as the draws say; edges are continued outwards.

    Args:
        images: `uint8 (n, H, W, 3)`.
        draws: `(n, 11)` in [-1, 1].
    """
    count, height, width, _ = images.shape
    # From positions in the result to positions in the image, (n, 3, 3).
    maps = _homographies(draws.double()).float()
    down, right = torch.meshgrid(_centres(height), _centres(width), indexing="ij")
    positions = torch.stack([right, down, torch.ones_like(down)], -1)  # (H, W, 3)
    positions = positions.reshape(1, -1, 3)  # (1, H * W, 3)
    mapped = positions @ maps.transpose(1, 2)  # (n, H * W, 3)
    grid = (mapped[..., :2] / mapped[..., 2:]).reshape(count, height, width, 2)
    pixels = images.permute(0, 3, 1, 2).float()  # (n, 3, H, W)
    warped = F.grid_sample(
        pixels, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return warped.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _centres(size: int) -> Tensor:
    """Return the centres of `size` pixels on the interval [-1, 1]."""
    return (torch.arange(size) + 0.5) * 2 / size - 1


def _homographies(draws: Tensor) -> Tensor:
    """Return the projective maps `(n, 3, 3)` that take the square's corners where the draws say."""
    square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=draws.dtype)
    angle = draws[:, 0] * ROTATION
    cosine = angle.cos()
    sine = angle.sin()
    rotation = torch.stack([cosine, -sine, sine, cosine], -1).view(-1, 2, 2)
    # Sides have length 2, so a share of the side counts twice.
    shift = 2 * SHIFT * draws[:, None, 1:3]
    tilt = 2 * TILT * draws[:, 3:].view(-1, 4, 2)
    corners = square @ rotation.transpose(1, 2) + shift + tilt  # (n, 4, 2)
    # Each corner (x, y) that is mapped to (u, v) gives two linear equations for the 8 entries.
    equations = []
    for (x, y), corner in zip(square, corners.unbind(1), strict=True):
        u = corner[:, 0]
        v = corner[:, 1]
        one = torch.ones_like(u)
        zero = torch.zeros_like(u)
        equations.append(torch.stack([x * one, y * one, one, zero, zero, zero, -u * x, -u * y], -1))
        equations.append(torch.stack([zero, zero, zero, x * one, y * one, one, -v * x, -v * y], -1))
    entries = torch.linalg.solve(torch.stack(equations, 1), corners.flatten(1))  # (n, 8)
    return torch.cat([entries, torch.ones_like(entries[:, :1])], 1).view(-1, 3, 3)
