"""What a config says of a set: where its images are, and how they become what the experiment
wants.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from robust_ood.data.files import Fit, Policy
from robust_ood.errors import UserError


@dataclass(frozen=True)
class SetSpec:
    """A set of images, where its name or path alone does not say enough.

    Args:
        source: an embedded set, a catalogue entry (`svhn`, `cifar10/train`), a path, absolute or
            relative to the data root (array file, folder of images or of class folders, image
            list), or the class path of a `torch.utils.data.Dataset`.
        name: what the set is called in results; by default what its source is called.
        size: side of the images in pixels; the data's `size` by default.
        policy: how images of other sizes become that size: "resize" (shorter side, then centre),
            "stretch", "center_crop" or "random_crop" (at the original resolution, one fixed place
            for each image).
        shorter: shorter side before "resize" cuts the centre out; `size` by default.
        labels: `.npy` of integer labels for a source without its own.
        base: folder that an image list's paths are relative to.
        exclude: text file of indices to leave out, one a line, counted from 0 (`robust-ood data
            overlap` writes them).
        count: use only so many images, drawn once by `seed`.
        seed: of `count` and of "random_crop".
        max_unreadable: share of the images that may turn out unreadable.
        arguments: what a class path is called with.
    """

    source: str
    name: str | None = None
    size: int | None = None
    policy: Policy = "resize"
    shorter: int | None = None
    labels: str | None = None
    base: str | None = None
    exclude: str | None = None
    count: int | None = None
    seed: int = 0
    max_unreadable: float = 0.01
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UserError(f"{self.source}: count {self.count} is not a number of images >= 1")
        if not 0 <= self.max_unreadable <= 1:
            raise UserError(
                f"{self.source}: max_unreadable {self.max_unreadable} is no share in [0, 1]"
            )
        self.fit(self.size)

    def fit(self, size: int | None) -> Fit | None:
        """Return how images become `size` pixels wide, or this set's own size where it states one;
        None without any.
        """
        size = self.size or size
        return None if size is None else Fit(size, self.policy, self.shorter, self.seed)
