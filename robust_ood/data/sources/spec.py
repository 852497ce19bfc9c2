"""What a config says of a set: where its images come from, and how they become one size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from robust_ood.data.sources.resize import Resize, ResizePolicy
from robust_ood.errors import UserError


@dataclass(frozen=True)
class SetSpec:
    """A set of images, where its name or path alone does not say enough.

    Args:
        source: an embedded set, a catalogue entry (`svhn`, `cifar10/train`), a path, absolute or
            relative to the data root (array file, folder of images or of class folders, image
            list), or the class path of a `torch.utils.data.Dataset`.
        name: what the set is called in results; by default the name of its source.
        size: side of the images in pixels; the data's `size` by default.
        policy: how images of other sizes become that size: "resize" (shorter side, then centre
            crop), "stretch", "center_crop" or "random_crop" (at the original resolution, one fixed
            place for each image).
        shorter: length in pixels of the shorter side before the centre crop of "resize"; `size` by
            default.
        labels: `.npy` of integer labels for a source without its own.
        base: folder that an image list's paths are relative to.
        exclude: text file of indices to leave out, one a line, counted from 0 (`robust-ood data
            overlap` writes them).
        count: use only this many images, drawn once by `seed`.
        seed: seed of `count` and of "random_crop".
        max_unreadable: share of the images that may turn out to be unreadable, in [0, 1].
        arguments: keyword arguments that a class path is called with.
    """

    source: str
    name: str | None = None
    size: int | None = None
    policy: ResizePolicy = "resize"
    shorter: int | None = None
    labels: str | None = None
    base: str | None = None
    exclude: str | None = None
    count: int | None = None
    seed: int = 0
    max_unreadable: float = 0.01
    arguments: dict[str, Any] = field(default_factory=dict)

    # jsonargparse's restricted types (PositiveInt, ClosedUnitInterval) would check only what a
    # config or the command line says; these checks also hold in Python.
    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UserError(
                f"{self.source}: count: expected a number of images >= 1, got {self.count}"
            )
        if not 0 <= self.max_unreadable <= 1:
            raise UserError(
                f"{self.source}: max_unreadable: expected a share in [0, 1], "
                f"got {self.max_unreadable}"
            )
        self.resize_to(self.size)  # checks `size`, `policy` and `shorter`

    def resize_to(self, default_size: int | None) -> Resize | None:
        """Return how images become this set's own size or else `default_size`; None without one."""
        size = self.size or default_size
        if size is None:
            return None
        return Resize(size, self.policy, self.shorter, self.seed)
