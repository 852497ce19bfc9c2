"""Fitting: passes over images, in bounded memory, shared by all detectors that are fitted together.

A detector's `learn` is a generator. Each time it yields passes, the driver here streams each loader
once through all that read it, and resumes the generator when their statistics are complete, over
all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from robust_ood.detectors.processes import total
from robust_ood.detectors.statistics import Statistic
from robust_ood.errors import UserError
from robust_ood.models import Outputs, outputs
from robust_ood.modes import differentiating, evaluating

if TYPE_CHECKING:
    from robust_ood.detectors.contract import Detector


Source = Literal["inliers", "validation", "outliers"]
"""Which images a pass reads: in-distribution ones, such that the network was not trained on, or
auxiliary outliers.
"""


class Seen(NamedTuple):
    """One batch, as a pass reads it: float images, their classes where the loader gives them, and
    one forward pass.
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
        """Return the labels `(N,)`, or raise `UserError` where one is missing or not in
        0..count-1.
        """
        if self.labels is None:
            raise UserError(
                "loader: gives images without labels; this detector needs their classes to be fitted"
            )
        wrong = self.labels[(self.labels < 0) | (self.labels >= count)]
        if len(wrong):
            raise UserError(
                f"loader: gives an image of class {int(wrong[0])}; the network has classes 0..{count - 1}"
            )
        return self.labels


class Pass(NamedTuple):
    """One statistic of one pass over the data.

    statistic: what is accumulated. read: what it is given of each batch. module: a network, run
    once a batch with the chosen `layers` for all its readers, or (`forward=False`) a detector that
    `read` calls itself. source: whose images.
    """

    statistic: Statistic
    read: Callable[[Seen], tuple[Tensor, ...]]
    module: nn.Module
    layers: tuple[str, ...] = ()
    forward: bool = True
    source: Source = "inliers"


Rounds = Iterator[list[Pass]]


def together(runs: Iterable[Rounds]) -> Rounds:
    """Run generators of passes in step, so that their n-th passes are one."""
    runs = list(runs)
    while passes := [item for run in runs for item in next(run, [])]:
        yield passes


def fit(
    detectors: Iterable[Detector],
    loader: Iterable[Any],
    *,
    validation: Iterable[Any] | None = None,
    outliers: Iterable[Any] | None = None,
) -> None:
    """Fit several detectors in as few passes over the data, and forward passes of their networks,
    as possible.

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
    chosen = list(detectors)
    loaders: dict[Source, Iterable[Any] | None] = {
        "inliers": loader,
        "validation": validation,
        "outliers": outliers,
    }
    with differentiating(), torch.no_grad(), evaluating(*chosen):
        for number, passes in enumerate(together([detector.learn() for detector in chosen])):
            for source, images in loaders.items():
                reading = [item for item in passes if _source(item, validation) == source]
                if reading and images is not None:
                    _stream(images, reading, number, "loader" if source == "inliers" else source)


def _source(item: Pass, validation: Iterable[Any] | None) -> Source:
    return "inliers" if item.source == "validation" and validation is None else item.source


def _stream(loader: Iterable[Any], passes: Sequence[Pass], number: int, field: str) -> None:
    groups: dict[int, list[Pass]] = {}
    for item in passes:
        groups.setdefault(id(item.module), []).append(item)
    count = 0
    for batch in loader:
        images, labels = unpack(batch)
        count += len(images)
        for members in groups.values():
            seen = _see(members, images, labels)
            for item in members:
                item.statistic.add(*item.read(seen))
    hint = "gives no images" if number == 0 else "gives no images when it is iterated again"
    require_images(
        count, field, f"{hint}; a list, a DataLoader or another iterable that starts anew is wanted"
    )
    for item in passes:
        item.statistic.reduce()


def require_images(count: int, field: str, problem: str) -> None:
    """Raise `UserError` in all processes where one has seen nothing: it would keep the others
    waiting for ever.
    """
    if int(total(torch.tensor(count), "min")) == 0:
        raise UserError(f"{field}: {problem}")


def _see(members: Sequence[Pass], images: Tensor, labels: Tensor | None) -> Seen:
    module = members[0].module
    device = device_of(module)
    images = as_floats(images.to(device))
    layers = tuple(sorted({layer for item in members for layer in item.layers}))
    out = outputs(module, images, layers) if any(item.forward for item in members) else None
    return Seen(images, None if labels is None else labels.to(device), out)


def unpack(batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return a batch's images and, where it has them, labels: a `Batch`, `(images, labels, ...)` or
    bare images.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        labels = batch[1] if len(batch) > 1 and isinstance(batch[1], Tensor) else None
        return batch[0], labels
    raise UserError(
        f"loader: gives a {type(batch).__name__}; images, or a tuple of images and labels, are wanted"
    )


def as_floats(images: Tensor) -> Tensor:
    """Return uint8 images as floats in [0, 1], and float images as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter or buffer."""
    first = next(module.parameters(), next(module.buffers(), None))
    return torch.device("cpu") if first is None else first.device
