"""Calibration: detectors fitted on training images, their thresholds on held-out ones."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robust_ood import detectors
from robust_ood.arguments import typed
from robust_ood.data import ImageSet, OODData, SetSpec, to_float
from robust_ood.data.sources.form import ImageForm
from robust_ood.deployment.description import Description, Measured, refuse_code
from robust_ood.deployment.guard import Guard
from robust_ood.deployment.measured import EvaluationScores, rates_of
from robust_ood.deployment.preprocessing import Preprocessing
from robust_ood.deployment.tolerance import Threshold, conformal_threshold, images_needed
from robust_ood.detectors import Detector
from robust_ood.errors import UserError, notify
from robust_ood.modes import evaluating
from robust_ood.settings import PartSpec, read_part

Part = Literal["validation", "test"]
_TRIED = 32
"""How many images are scored one by one, to see what rounding changes."""


@dataclass(frozen=True)
class Promise:
    """What a guard is to promise.

    Args:
        accept: share of new in-distribution images that is accepted at least, in (0, 1).
        confidence: the probability of that, over the calibration images, in (0, 1).
        calibrate_on: the part of the data that the threshold is from.
    """

    accept: float = 0.95
    confidence: float = 0.95
    calibrate_on: Part = "validation"


@typed
def calibrate(
    net: nn.Module,
    specs: Sequence[PartSpec],
    data: OODData,
    promise: Promise | None = None,
    *,
    results: Path | str | None = None,
    training: Mapping[str, Any] | None = None,
    class_names: tuple[str, ...] = (),
) -> dict[str, Guard]:
    """Return one guard for each detector, by its label.

    Detectors that need statistics are fitted on the training images. The calibration images are
    used for the threshold alone. Test and OOD sets that the data names are scored, too, to say how
    many of them are accepted.

    Args:
        net: one of this project's networks, in eval mode.
        specs: registered detectors, as a config writes them.
        data: the sets; `train` is needed where a detector has something to learn.
        promise: by default 95 % of new images with 95 % confidence, calibrated on `validation`.
        results: folder of an evaluation of the same network, whose attacked rates are to be stated.
        training: plain values on what trained the network.
        class_names: one for each class; by default the data's.

    Raises: `UserError` where the images are too few for the promise, are those of training, or a
        detector cannot be rebuilt from a folder.
    """
    promise = promise or Promise()
    written = _written(specs)
    built = detectors.build_all(specs, net)
    calibration = _calibration_images(data, promise)
    preprocessing = _preprocessing(data, promise.calibrate_on, calibration)
    evaluation = None if results is None else EvaluationScores(Path(results), net)
    guards = {}
    with evaluating(net):
        _fit(list(built.values()), data, promise)
        for label, detector in built.items():
            threshold, rounding, scores = _threshold(detector, data, promise)
            measured = list(_measured(detector, data, promise, threshold.value))
            if evaluation is not None:
                _check_same_detector(detector, label, data, evaluation)
                measured = _joined(measured, evaluation.rates(label, threshold.value))
            description = Description(
                detector=written[label],
                threshold=threshold,
                preprocessing=preprocessing,
                calibrated_on=calibration.name,
                rounding=rounding,
                class_names=class_names or calibration.class_names,
                measured=tuple(measured),
                training=dict(training or {}),
                versions=_versions(),
                created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
            )
            guards[label] = Guard(net, detector, description, scores.double().sort().values)
    return guards


def score_set(detector: Detector, data: OODData, images: ImageSet) -> Tensor:
    """Return the scores `(N,)` of all images of a set that can be read, on the CPU."""
    scores = []
    device = next((weight.device for weight in detector.parameters()), torch.device("cpu"))
    for batch in data.evaluation_loader(images):
        with torch.no_grad():
            scores.append(detector(to_float(batch.images.to(device))).cpu())
    return torch.cat(scores)


def _written(specs: Sequence[PartSpec]) -> dict[str, dict[str, Any]]:
    """Return the detectors as a folder will name them, by label.

    Raises: `UserError` for none, and for one that a folder may not name.
    """
    written = {}
    for spec in specs:
        part = read_part("detectors", spec)
        named = {"name": part.name, **part.settings}
        if part.label:
            named["label"] = part.label
        refuse_code(named)
        written[part.label or part.name] = named
    if not written:
        raise UserError("detectors: none given")
    return written


def _threshold(
    detector: Detector, data: OODData, promise: Promise
) -> tuple[Threshold, float, Tensor]:
    """Return a fitted detector's threshold, the rounding of its scores, and the scores `(N,)`."""
    images = data.inliers(promise.calibrate_on)
    scores = score_set(detector, data, images)
    rounding = _rounding(detector, images, scores)
    threshold = conformal_threshold(scores, promise.accept, promise.confidence)
    lowered = np.float32(threshold.value - rounding)
    # A guard compares in float32: down, so that the promise stays.
    value = float(np.nextafter(lowered, np.float32(-np.inf)))
    return replace(threshold, value=value), rounding, scores


def _joined(measured: Sequence[Measured], evaluated: Sequence[Measured]) -> list[Measured]:
    """Return both, without what an evaluation measured again."""
    known = {(entry.images, entry.group, entry.attack) for entry in measured}
    joined = list(measured)
    for entry in evaluated:
        if (entry.images, entry.group, entry.attack) not in known:
            joined.append(entry)
    return joined


def _calibration_images(data: OODData, promise: Promise) -> ImageSet:
    """Return the calibration images, once they are known to be enough and not those of training."""
    part = promise.calibrate_on
    spec = data.names[part]
    if spec is not None and repr(spec) == repr(data.names["train"]):
        raise UserError(
            f"data.{part}: is the training set; a threshold needs images that nothing learned from"
        )
    images = data.inliers(part)
    needed = images_needed(promise.accept, promise.confidence)
    if len(images) < needed:
        raise UserError(
            f"accept: {promise.accept:g} with confidence {promise.confidence:g} needs at least "
            f"{needed} calibration images, got {len(images)} (data.{part}); give more images, or "
            "promise less"
        )
    return images


def _preprocessing(data: OODData, part: Part, images: ImageSet) -> Preprocessing:
    """Return how the calibration images were brought to their size."""
    spec = data.names[part]
    form = ImageForm(data.size, channels=data.channels)
    if isinstance(spec, SetSpec):
        form = spec.form(data.size, data.channels)
    channels, height, width = images.input_shape
    try:
        return Preprocessing(
            height,
            width,
            1 if channels == 1 else 3,
            form.policy,
            form.shorter,
            form.bits,
        )
    except UserError as error:
        raise UserError(f"data.{part}: {error}") from error


def _fit(built: Sequence[Detector], data: OODData, promise: Promise) -> None:
    """Fit what has something to learn, without a look at the calibration images."""
    unfitted = [detector for detector in built if not detector.fitted]
    if not unfitted:
        return
    validation = None
    if promise.calibrate_on != "validation" and data.names["validation"] is not None:
        validation = data.evaluation_loader(data.inliers("validation"))
    outliers = None
    splits: set[str] = set()
    for detector in unfitted:
        splits.update(detector.learns_from)
        if "validation" in detector.learns_from and validation is None:
            notify(
                f"{type(detector).__name__}: {detector.learns_from['validation']}, because the "
                "validation images are kept for the threshold; --calibrate_on test frees them"
            )
    if "outliers" in splits:
        images = data.outliers()
        if images is not None:
            outliers = data.evaluation_loader(images)
    train = data.evaluation_loader(data.inliers("train"))
    detectors.fit(unfitted, train, validation=validation, outliers=outliers)


def _measured(
    detector: Detector, data: OODData, promise: Promise, threshold: float
) -> Iterator[Measured]:
    """Yield what is accepted of the test and OOD sets that the data names."""
    sets: list[tuple[str, ImageSet]] = []
    if promise.calibrate_on != "test" and data.names["test"] is not None:
        sets.append(("id", data.inliers("test")))
    sets += data.ood_sets()
    sets += [("validation_ood", images) for images in data.validation_ood_sets()]
    for group, images in sets:
        accepted, count = rates_of(score_set(detector, data, images), threshold)
        yield Measured(images.name, group, "none", accepted, count)


def _rounding(detector: Detector, images: ImageSet, scores: Tensor) -> float:
    """Return how much a score may differ by the size of its batch: twice what a trial shows.

    At least a hundred times float32's own precision at the scores' size.
    """
    first = images.take(torch.arange(min(_TRIED, len(images)))).images
    device = next((weight.device for weight in detector.parameters()), torch.device("cpu"))
    single = []
    with torch.no_grad():
        for image in first:
            single.append(detector(to_float(image[None].to(device))).cpu())
    difference = (torch.cat(single) - scores[: len(single)]).abs().max()
    least = 1e-5 * scores.abs().max()
    return float(torch.maximum(2 * difference, least))


def _check_same_detector(
    detector: Detector, label: str, data: OODData, evaluation: EvaluationScores
) -> None:
    """Refuse results of a detector of the same label that scores otherwise."""
    if data.names["test"] is None:
        return
    images = data.inliers("test")
    stored = evaluation.clean(label, images.name)
    if stored is None or len(stored) != len(images):
        return
    scores = score_set(detector, data, images).double().numpy()
    if not np.allclose(scores, stored, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"results: {evaluation.folder} has scores of another detector {label!r} (other "
            "settings, or fitted on other images); evaluate this one, or leave the results out"
        )


def _versions() -> dict[str, str]:
    try:
        own = version("robust-ood")
    except PackageNotFoundError:  # a source tree that is not installed
        own = "unknown"
    return {
        "robust-ood": own,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
