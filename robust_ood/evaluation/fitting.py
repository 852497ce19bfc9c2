"""Fitting what a detector must learn, once: what was learned lies in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from robust_ood import detectors as detector_module
from robust_ood.data import ImageSet, OODData
from robust_ood.detectors import Detector
from robust_ood.detectors.fitting.passes import Split
from robust_ood.evaluation.batches import chunks
from robust_ood.evaluation.fingerprints import code_version, fingerprint
from robust_ood.evaluation.jobs import Job, Runner
from robust_ood.evaluation.store import Cell


def fit_missing(
    model: str,
    net: nn.Module,
    detectors: Mapping[str, Detector],
    data: OODData,
    runner: Runner,
    before: Callable[[], None],
) -> dict[str, Detector]:
    """Return the detectors that are fitted, from the store where it has their state; the runner
    notes who fails.

    Args:
        model: whose detectors they are.
        net: the network, fingerprinted once for all.
        detectors: by label; those that are fitted already are left alone.
        data: its training images are read if something must be fitted; also its validation images
            and its auxiliary outliers, where it has them and a detector learns from them.
        runner: computes what the store does not have.
        before: called before anything is computed.
    """
    unfitted = {name: detector for name, detector in detectors.items() if not detector.fitted}
    if not unfitted:
        return dict(detectors)
    sources = _sources(data, unfitted.values())
    pixels = {source: _content(images) for source, images in sources.items()}
    known = {id(net): fingerprint(net)}
    keys = {
        name: fingerprint(
            ["fit", code_version(), fingerprint(detector, known), *_read(detector, pixels)]
        )
        for name, detector in unfitted.items()
    }

    def compute(labels: Sequence[str]) -> dict[str, Cell]:
        before()
        chosen = {label: unfitted[label] for label in labels}
        loaders: dict[str, Any] = {
            source: data.evaluation_loader(images) for source, images in sources.items()
        }
        detector_module.fit(chosen.values(), loaders.pop("inliers"), **loaders)
        return {label: _state(detector) for label, detector in chosen.items()}

    name, title = (
        f"fit-{fingerprint([known[id(net)], pixels])}",
        f"{model}: fitting {', '.join(unfitted)}",
    )
    work = 4.0 * sum(len(images) for images in sources.values())
    runner.run([Job(name, title, model, "none", "fit", keys, work, compute)])
    fitted = dict(detectors)
    for label, detector in unfitted.items():
        cell = runner.store.read(keys[label])
        if cell is None:
            del fitted[label]
        else:
            _load(detector, cell)
    return fitted


def missing_sources(data: OODData, detectors: Mapping[str, Detector]) -> dict[str, list[str]]:
    """Return, by detector, in words, what it does for want of images that the data does not
    name.
    """
    return {
        name: [
            f"data.{source} is not given, so {instead}"
            for source, instead in detector.learns_from.items()
            if data.names[source] is None
        ]
        for name, detector in detectors.items()
        if not detector.fitted
    }


def _sources(data: OODData, detectors: Iterable[Detector]) -> dict[Split, ImageSet]:
    """Return the images that detectors learn from: training images, and others where a detector
    wants them.
    """
    sources: dict[Split, ImageSet] = {"inliers": data.inliers("train")}
    wanted = {source for detector in detectors for source in detector.learns_from}
    if "validation" in wanted and data.names["validation"] is not None:
        sources["validation"] = data.inliers("validation")
    outliers = data.outliers() if "outliers" in wanted else None
    return sources if outliers is None else {**sources, "outliers": outliers}


def _content(images: ImageSet) -> str:
    return fingerprint([[part.content for part in chunks(images, None)], images.labels])


def _read(detector: Detector, pixels: Mapping[Split, str]) -> list[str]:
    """Return the fingerprints of the images that a detector learns from."""
    return [
        pixels[source] for source in ("inliers", *sorted(detector.learns_from)) if source in pixels
    ]


def _learned(detector: Detector) -> list[str]:
    """Return the names of all that is learned, in a detector and in those inside it."""
    parts = [
        (prefix, part) for prefix, part in detector.named_modules() if isinstance(part, Detector)
    ]
    return [f"{prefix}.{name}".lstrip(".") for prefix, part in parts for name in part.declared]


def _state(detector: Detector) -> Cell:
    state = detector.state_dict()
    return Cell({name: state[name].cpu().numpy() for name in _learned(detector)}, {})


def _load(detector: Detector, cell: Cell) -> None:
    """Load what the store has, also right after fitting: then every process goes on from the same
    bits.
    """
    learned = {name: torch.from_numpy(array.copy()) for name, array in cell.arrays.items()}
    detector.load_state_dict({**detector.state_dict(), **learned})
