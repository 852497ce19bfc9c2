"""Common corruptions of images at five severities, as CIFAR-10-C and ImageNet-C have them.

Source: Hendrycks and Dietterich 2019. The library `imagecorruptions-imaug` makes them: the
maintained copy of `imagecorruptions` (the published code as a package, last released in 2020), with
its names and severities. CIFAR-10-C has milder severities of its own, so rates differ from its
tables.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.draws import seeded
from robust_ood.data.storage import ImageStorage
from robust_ood.errors import UserError
from robust_ood.randomness import derive_seed

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog", "brightness",
    "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    "speckle_noise", "gaussian_blur", "spatter", "saturate",
)  # fmt: skip
"""Names of the corruptions; the last four are the papers' validation corruptions."""
_TAKES_SEED = ("impulse_noise", "glass_blur")
"""Those that draw from generators of their own; the others draw from NumPy's global one."""
_SMALLEST = 32  # pixels, of the library
_LOCK = threading.Lock()
"""Global generators are seeded for each image, and threads read sets into memory."""


class CorruptedStorage:
    """A storage whose images are corrupted when asked for; an image is always the same one.

    Args:
        images: uint8 `(N, H, W, C)`, H and W >= 32.
        corruption: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        seed: of the draws, which are keyed by the image's place in the set.
    """

    def __init__(self, images: ImageStorage, corruption: str, severity: int, seed: int) -> None:
        self.images = images
        self.corruption = corruption
        self.severity = severity
        self.seed = seed
        self.dtype = np.dtype(np.uint8)
        self.shape = images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Any) -> NDArray[np.uint8]:
        indices = np.atleast_1d(np.asarray(indices))
        images = self.images[indices]  # (n, H, W, C)
        corrupted = np.empty_like(images)
        for position, index in enumerate(indices.tolist()):
            key = derive_seed(self.seed, "corruption", self.corruption, self.severity, index)
            pixels = self._corrupt(np.ascontiguousarray(images[position]), key)
            corrupted[position] = pixels[..., : images.shape[3]]  # grey ones come back in three
        return corrupted

    def _corrupt(self, image: NDArray[np.uint8], key: int) -> NDArray[np.uint8]:
        from imagecorruptions import corrupt

        settings: dict[str, Any] = {"severity": self.severity, "corruption_name": self.corruption}
        if self.corruption in _TAKES_SEED:
            settings["seed"] = key % 2**32
        with _LOCK, seeded(key):
            pixels: NDArray[np.uint8] = corrupt(image, **settings)
        return pixels


def corrupted(images: ImageSet, corruption: str, severity: int, seed: int) -> ImageSet:
    """Return a set whose images are corrupted; names of arguments as in `CorruptedStorage`.

    Raises:
        UserError: the library is missing, or the images are smaller than it takes.
    """
    try:
        import imagecorruptions  # noqa: F401  # before anything is computed
    except ImportError as error:
        raise UserError(
            f"corruption: {corruption} needs the package imagecorruptions-imaug ({error}); install "
            'it with pip install "robust-ood[corruptions]"'
        ) from error
    height, width = images.image_shape
    if min(height, width) < _SMALLEST:
        raise UserError(
            f"corruption: needs images of at least {_SMALLEST} x {_SMALLEST} pixels, and those of "
            f"{images.name} are {height} x {width}; size makes them larger"
        )
    storage = CorruptedStorage(images.images, corruption, severity, seed)
    name = f"{images.name}-{corruption}-{severity}"
    return ImageSet(name, storage, images.labels, images.class_names, images.max_unreadable)
