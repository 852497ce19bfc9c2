"""Fitting: passes over images, in bounded memory, shared by all detectors that are fitted together.

A detector's `learn` is a generator. Each time it yields passes, the driver here streams each loader
once through all that read it. It resumes the generator when their statistics are complete, over all
processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robust_ood.arguments import typed
from robust_ood.detectors.fitting.heap import give_back
from robust_ood.detectors.fitting.processes import total
from robust_ood.detectors.fitting.statistics import Statistic
from robust_ood.errors import UserError
from robust_ood.inputs import check_form, check_range, pixel_range
from robust_ood.models import Outputs, outputs
from robust_ood.modes import differentiating, evaluating

Split = Literal["inliers", "validation", "outliers"]
"""Which images a pass reads: training images, held-out inliers, or auxiliary outliers."""


class SeenBatch(NamedTuple):
    """One batch, as a pass reads it.

    images: floats `(N, C, H, W)`. labels: classes `(N,)` where the loader gives them. outputs: one
    forward pass of the pass's network, where it has one.
    """

    images: Tensor
    labels: Tensor | None
    outputs: Outputs | None

    @property
    def out(self) -> Outputs:
        """The forward pass of the pass's network."""
        assert self.outputs is not None  # the driver runs the network for every pass that has one
        return self.outputs

    def classes(self, count: int) -> Tensor:
        """Return the labels `(N,)`.

        Raises: `UserError` where one is missing or not in 0..count-1.
        """
        if self.labels is None:
            raise UserError(
                "loader: gives images without labels; this detector needs their classes to be "
                "fitted"
            )
        if self.labels.is_floating_point() or self.labels.dtype == torch.bool:
            kind = str(self.labels.dtype).removeprefix("torch.")
            raise UserError(f"loader: gives labels of {kind}; expected whole numbers")
        outside = self.labels[(self.labels < 0) | (self.labels >= count)]
        if len(outside):
            raise UserError(
                f"loader: gives an image of class {int(outside[0])}; the network has classes "
                f"0..{count - 1}"
            )
        return self.labels


def read_features(seen: SeenBatch) -> tuple[Tensor]:
    """Return a batch's penultimate features `(N, D)`, for a statistic of them."""
    return (seen.out.features,)


class Pass(NamedTuple):
    """One statistic of one pass over the data.

    statistic: what is accumulated. read: what it is given of each batch. module: a network, run
    once a batch with the chosen `layers` for all its readers, or (`forward=False`) a detector that
    `read` calls itself. split: whose images.
    """

    statistic: Statistic
    read: Callable[[SeenBatch], tuple[Tensor, ...]]
    module: nn.Module
    layers: tuple[str, ...] = ()
    forward: bool = True
    split: Split = "inliers"


Rounds = Iterator[list[Pass]]
"""What `learn` yields: the passes of one round at a time."""


class Learner(Protocol):
    """What can be fitted: a module with a generator of passes."""

    def learn(self) -> Rounds:
        """Yield passes, and keep what they give."""


def together(runs: Iterable[Rounds]) -> Rounds:
    """Run generators of passes in step, so that their n-th passes are one."""
    runs = list(runs)
    while True:
        passes: list[Pass] = []
        for run in runs:
            passes.extend(next(run, []))
        if not passes:
            return
        yield passes


@typed
def fit(
    detectors: Iterable[Learner],
    loader: Iterable[Any],
    *,
    validation: Iterable[Any] | None = None,
    outliers: Iterable[Any] | None = None,
) -> None:
    """Fit several detectors in as few passes over the data and forward passes as possible.

    Args:
        detectors: detectors; those that need no statistics are left alone.
        loader: in-distribution batches, iterated once a pass: `Batch`es of our loaders, `(images,
            labels)` tuples, or bare images; images `(N, C, H, W)`, uint8 or float in [0, 1]. In a
            distributed run, each process's own share.
        validation: likewise, of images that the network was not trained on, for what must be
            calibrated; `loader` serves where there are none.
        outliers: batches of auxiliary outliers, never a test set, for what is learned from them;
            without any, that is left out (a detector's `learns_from` says what it means).

    Raises:
        UserError: a loader without images (or one that can be iterated only once where two passes
            are needed), missing or unusable labels where a detector needs classes, a class without
            images.

    Networks are in eval mode meanwhile and their flags are restored. Fitted state is in buffers
    that autograd accepts.
    """
    learners = list(detectors)
    for learner in learners:
        if not hasattr(learner, "learn"):
            raise UserError(f"detectors: expected detectors, got a {type(learner).__name__}")
    modules = [learner for learner in learners if isinstance(learner, nn.Module)]
    loaders: dict[Split, Iterable[Any] | None] = {
        "inliers": loader,
        "validation": validation,
        "outliers": outliers,
    }
    with differentiating(), torch.no_grad(), evaluating(*modules):
        rounds = together([learner.learn() for learner in learners])
        for number, passes in enumerate(rounds):
            for split, images in loaders.items():
                reading = [item for item in passes if _split_read(item, validation) == split]
                if reading and images is not None:
                    field = "loader" if split == "inliers" else split
                    _stream(images, reading, number, field)


def _split_read(item: Pass, validation: Iterable[Any] | None) -> Split:
    """Return the split that a pass reads: inliers stand in where there is no validation."""
    if item.split == "validation" and validation is None:
        return "inliers"
    return item.split


def _stream(loader: Iterable[Any], passes: Sequence[Pass], number: int, field: str) -> None:
    by_module: dict[int, list[Pass]] = {}
    for item in passes:
        by_module.setdefault(id(item.module), []).append(item)
    count = 0
    pixels: Tensor | None = None  # the smallest and the largest so far, (2,)
    for batch in loader:
        images, labels = unpack(batch, field)
        count += len(images)
        if labels is not None and labels.shape != images.shape[:1]:
            raise UserError(
                f"{field}: gives labels {tuple(labels.shape)} for {len(images)} images; expected "
                f"({len(images)},)"
            )
        if images.dtype != torch.uint8:
            check_form(images, field)
            if images.numel():
                pixels = _widened(pixels, pixel_range(images))
        for members in by_module.values():
            _add(members, images, labels)
        give_back()
    problem = "gives no images" if number == 0 else "gives no images when it is iterated again"
    require_images(
        count,
        field,
        f"{problem}; give a list, a DataLoader or another iterable that starts again each time",
    )
    if pixels is not None:  # read once, because each read waits for the device
        low, high = pixels.tolist()
        check_range(low, high, field)
    for item in passes:
        item.statistic.reduce()


def require_images(count: int, field: str, problem: str) -> None:
    """Raise `UserError` in all processes where one has seen nothing.

    Alone, that process would keep the others waiting for ever.
    """
    if int(total(torch.tensor(count), "min")) == 0:
        raise UserError(f"{field}: {problem}")


def _widened(known: Tensor | None, seen: Tensor) -> Tensor:
    """Return the smallest and the largest pixel `(2,)` of two ranges; NaN where one is NaN."""
    if known is None:
        return seen
    return torch.stack([torch.minimum(known[0], seen[0]), torch.maximum(known[1], seen[1])])


def _add(members: Sequence[Pass], images: Tensor, labels: Tensor | None) -> None:
    """Give one batch to all that read the same module.

    A function of its own, so that maps and features are gone before the next batch is computed.
    """
    seen = _see(members, images, labels)
    for item in members:
        item.statistic.add(*item.read(seen))


def _see(members: Sequence[Pass], images: Tensor, labels: Tensor | None) -> SeenBatch:
    module = members[0].module
    device = device_of(module)
    images = as_floats(images.to(device))
    if labels is not None:
        labels = labels.to(device)
    if not any(item.forward for item in members):
        return SeenBatch(images, labels, None)
    layers: set[str] = set()
    for item in members:
        layers.update(item.layers)
    return SeenBatch(images, labels, outputs(module, images, tuple(sorted(layers))))


def unpack(batch: Any, field: str = "loader") -> tuple[Tensor, Tensor | None]:
    """Return a batch's images `(N, C, H, W)` and, where it has them, labels.

    Args:
        batch: a `Batch`, `(images, labels, ...)` or bare images.
        field: the loader's name, for the message.
    """
    images = batch
    labels = None
    if isinstance(batch, (tuple, list)) and batch:
        images = batch[0]
        if len(batch) > 1 and isinstance(batch[1], Tensor):
            labels = batch[1]
    if not isinstance(images, Tensor):
        raise UserError(
            f"{field}: expected batches of images, or tuples of images and labels, got a "
            f"{type(batch).__name__}"
        )
    if images.dim() != 4:
        raise UserError(
            f"{field}: gives images {tuple(images.shape)}, expected a batch (N, C, H, W)"
        )
    return images, labels


def as_floats(images: Tensor) -> Tensor:
    """Return uint8 images as floats in [0, 1], and float images as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer."""
    first = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if first is None else first.device
