"""Augmentation as configs write it: names, torchvision's transforms, or classes of the user's own.

Every draw is a pure function of the run's seed, the epoch, the step, the process and the image's
place in its batch. So a resumed run draws what the run never stopped would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood.data.augment import crop_and_flip
from robust_ood.data.loaders import to_float
from robust_ood.data.reading import Batch
from robust_ood.errors import UserError, unknown_name
from robust_ood.randomness import Key, generator, seed_torch
from robust_ood.settings import Part, PartSpec, configured, import_path, read_part

AugmentationSpec = str | Sequence[PartSpec]
"""`crop_and_flip`, `none`, or a list of transforms, each a name or a mapping with settings."""

_FIELD = "data.augmentation"
_MIXING = {"mixup": "MixUp", "cutmix": "CutMix"}
"""What mixes images of a batch, by its name here: torchvision's class."""
_SMOOTHING = "label_smoothing"


class Augmentation:
    """A list of transforms of training images.

    A transform of torchvision draws once for whatever it is called with, so each image goes
    through it on its own, on the device that the batch is on. `crop_and_flip`, and a class of the
    user's own that has `batched = True`, take all images at once, with a generator. `mixup` and
    `cutmix` come after them and mix inliers alone: outliers stay outliers. `label_smoothing`, last
    of all, changes inliers' labels and no image.

    Args:
        given: as configs write it.
        num_classes: K, for labels that are shares of classes.
    """

    def __init__(self, given: AugmentationSpec, num_classes: int) -> None:
        self.num_classes = num_classes
        self._steps: list[tuple[str, Callable[..., Any]]] = []
        self._mixing: list[tuple[str, Callable[..., Any]]] = []
        for spec in _listed(given):
            part = read_part(_FIELD, spec)
            name = _MIXING.get(part.name, part.name)
            if self._smooths:
                raise UserError(f"{_FIELD}: {part.name} after {_SMOOTHING}, which comes last")
            if name in _MIXING.values():
                self._mixing.append((name, self._mixer(part, name)))
            elif name == _SMOOTHING:
                self._mixing.append((name, _smoother(part, num_classes)))
            elif self._mixing:
                raise UserError(
                    f"{_FIELD}: {part.name} after mixing; mixup and cutmix come after transforms"
                )
            elif name == "crop_and_flip":
                self._steps.append((name, _crop_and_flip(part)))
            elif name != "none":
                self._steps.append((name, _made(part)))

    @property
    def changes(self) -> bool:
        """Whether there is any transform."""
        return bool(self._steps or self._mixing)

    @property
    def mixes(self) -> bool:
        """Whether labels become shares of classes."""
        return bool(self._mixing)

    def augmented(self, batch: Batch, seed: int, rank: int) -> Batch:
        """Return a batch with inliers and outliers transformed, on whatever device it is.

        A worker process that reads the batch may do it as well as the process that trains.

        Args:
            batch: as the loader gives it.
            seed: the run's seed.
            rank: of the training process; images of other processes are drawn for apart.
        """
        if not self._steps:
            return batch
        keys = (batch.epoch, batch.step, rank)
        return batch._replace(
            images=self.transformed(batch.images, seed, "augment inliers", *keys),
            outliers=self.transformed(batch.outliers, seed, "augment outliers", *keys),
        )

    @property
    def _smooths(self) -> bool:
        return any(name == _SMOOTHING for name, _ in self._mixing)

    def transformed(self, images: Tensor, seed: int, purpose: str, *keys: Key) -> Tensor:
        """Return images `(N, C, H, W)`, uint8 or float, each transformed by its own draws.

        seed, purpose, keys: of the draws; see `randomness.generator`.
        """
        if not len(images):
            return images
        for place, (name, transform) in enumerate(self._steps):
            # The first transform has the keys that runs before there were lists had.
            step_keys: tuple[Key, ...] = (*keys, place) if place else keys
            if getattr(transform, "batched", False):
                images = transform(images, generator(seed, purpose, *step_keys))
            else:
                images = _one_by_one(transform, images, seed, purpose, *step_keys)
            _check(name, images)
        return images

    def mixed(self, images: Tensor, labels: Tensor, seed: int, *keys: Key) -> tuple[Tensor, Tensor]:
        """Return inliers `(N, C, H, W)`, mixed with each other or as they are, and their labels.

        Labels `(N,)` become `(N, K)`: each image's shares of the classes.
        """
        for place, (_, transform) in enumerate(self._mixing):
            with _seeded(images.device):
                seed_torch(seed, "mix", *keys, place, device=images.device)
                images, labels = transform(images, labels)
        return images, labels

    def _mixer(self, part: Part, name: str) -> Callable[..., Any]:
        if self._mixing:
            raise UserError(f"{_FIELD}: {part.name} beside another; accepted: one of mixup, cutmix")
        from torchvision.transforms import v2

        settings = {"num_classes": self.num_classes, **part.settings}
        mixer: Callable[..., Any] = getattr(v2, name)
        made: Callable[..., Any] = configured(f"{_FIELD}.{part.name}", mixer, settings=settings)
        return made


def _listed(given: Any) -> Sequence[PartSpec]:
    """Return the list of transforms; a text stands for a list of one."""
    if isinstance(given, str):
        if given not in ("crop_and_flip", "none"):
            raise UserError(
                f"{_FIELD}: expected one of crop_and_flip, none, or a list of transforms such as "
                f"[{{name: RandomResizedCrop, size: 224}}, RandomHorizontalFlip], got {given!r}"
            )
        return [given]
    if not isinstance(given, Sequence):
        raise UserError(f"{_FIELD}: expected a list of transforms, got {given!r}")
    return given


class _CropAndFlip:
    """`crop_and_flip` with its settings, as a user's own class would be written."""

    batched = True

    def __init__(self, padding: int = 4) -> None:
        if padding < 0:
            raise UserError(f"padding: {padding} is not a number of pixels >= 0")
        self.padding = padding

    def __call__(self, images: Tensor, source: torch.Generator) -> Tensor:
        return crop_and_flip(images, source, self.padding)


def _crop_and_flip(part: Part) -> Callable[..., Tensor]:
    """Return `crop_and_flip` with its settings."""
    made: Callable[..., Tensor] = configured(
        f"{_FIELD}.crop_and_flip", _CropAndFlip, settings=part.settings
    )
    return made


class _LabelSmoothing:
    """Label smoothing: `(1 - share) y + share / K`.

    Source: Szegedy et al. 2016, "Rethinking the Inception architecture for computer vision",
    section 7.
    """

    def __init__(self, num_classes: int, share: float = 0.1) -> None:
        if not 0 < share < 1:
            raise UserError(f"share: {share} is not a share in (0, 1)")
        self.num_classes = num_classes
        self.share = share

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.ndim == 1:
            labels = F.one_hot(labels, self.num_classes).to(images.dtype)
        return images, (1 - self.share) * labels + self.share / self.num_classes  # (N, K)


def _smoother(part: Part, num_classes: int) -> Callable[..., tuple[Tensor, Tensor]]:
    made: Callable[..., tuple[Tensor, Tensor]] = configured(
        f"{_FIELD}.{_SMOOTHING}", _LabelSmoothing, num_classes, settings=part.settings
    )
    return made


def _made(part: Part) -> Callable[..., Any]:
    """Return a transform of torchvision, by name, or a user's own, by import path."""
    from torchvision.transforms import v2

    if "." in part.name:
        make = import_path(_FIELD, part.name)
    else:
        names = []
        for name, value in vars(v2).items():
            if isinstance(value, type) and issubclass(value, v2.Transform):
                names.append(name)
        if part.name not in names:
            ours = ["crop_and_flip", *_MIXING, _SMOOTHING]
            raise unknown_name(_FIELD, part.name, [*ours, *names])
        make = getattr(v2, part.name)
    try:
        made: Callable[..., Any] = configured(f"{_FIELD}.{part.name}", make, settings=part.settings)
    except (TypeError, ValueError) as error:  # of torchvision, about a value
        raise UserError(f"{_FIELD}.{part.name}: {error}") from error
    if not callable(made):
        raise UserError(f"{_FIELD}: {part.name!r} makes no transform; expected a callable")
    return made


def _one_by_one(
    transform: Callable[..., Any], images: Tensor, seed: int, purpose: str, *keys: Key
) -> Tensor:
    """Return each image `(C, H, W)` transformed by draws of its own, as a batch."""
    transformed = []
    with _seeded(images.device):
        for place, image in enumerate(images):
            seed_torch(seed, purpose, *keys, place, device=images.device)
            transformed.append(transform(image))
    shapes = {tuple(image.shape) for image in transformed}
    if len(shapes) > 1:
        name = type(transform).__name__
        raise UserError(f"{_FIELD}: {name} gives images of several shapes: {sorted(shapes)[:3]}")
    return torch.stack(transformed)


@contextmanager
def _seeded(device: torch.device) -> Iterator[None]:
    """Give torch's global generators back as they were; torchvision draws from them."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        yield


def as_float(images: Tensor) -> Tensor:
    """Return images `(N, C, H, W)` as floats in [0, 1]; an augmentation may have made them so."""
    return images if images.is_floating_point() else to_float(images)


def _check(name: str, images: Tensor) -> None:
    """Refuse what no network here takes: pixels are uint8, or floats in [0, 1]."""
    if images.dtype == torch.uint8:
        return
    low, high = torch.aminmax(images.float())
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{_FIELD}: {name} gives values in {float(low):g}..{float(high):g}; expected uint8 or "
            "floats in [0, 1]: normalisation is the network's first layer"
        )
