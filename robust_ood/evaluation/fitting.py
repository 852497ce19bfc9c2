"""Fitting as a task: what a detector has learned lies in the store and is learned once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from robust_ood import detectors as detector_module
from robust_ood.data import ImageSet, OODData
from robust_ood.detectors import Detector
from robust_ood.detectors.fitting import Split
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.scoring import Scorer, chunks
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import Model, Task
from robust_ood.evaluation.versions import code_version


class FitTask(Task):
    """What detectors learn from images.

    Args:
        model: its detectors that are not fitted are those that learn.
        data: its training images, and where detectors learn from them its validation images and
            auxiliary outliers.
        scorer: computes.
    """

    stage = "fit"

    def __init__(self, model: Model, data: OODData, scorer: Scorer) -> None:
        self.subject = model
        self.model = model.name
        self.data = data
        self.scorer = scorer
        self.detectors: dict[str, Detector] = {}
        for label, detector in model.detectors.items():
            if not detector.fitted:
                self.detectors[label] = detector
        self.images = self._images()
        contents = {split: _content(images) for split, images in self.images.items()}
        self.keys = {}
        for label, detector in self.detectors.items():
            splits = ("inliers", *sorted(detector.learns_from))
            read = [contents[split] for split in splits if split in contents]
            unfitted = model.fingerprint(label)
            self.keys[label] = fingerprint(["fit", code_version(), unfitted, *read])
        self.name = f"fit-{fingerprint([model.net_fingerprint, contents])}"
        self.title = f"{model.name}: fitting {', '.join(self.detectors)}"
        self.work = 4.0 * sum(len(images) for images in self.images.values())

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Fit the detectors together, and return what each learned."""
        self.scorer.bring(self.subject.net, self.subject.detectors)
        loaders: dict[str, Any] = {}
        for split, images in self.images.items():
            loaders[split] = self.data.evaluation_loader(images)
        detectors = {label: self.detectors[label] for label in labels}
        detector_module.fit(detectors.values(), loaders.pop("inliers"), **loaders)
        cells = {}
        for label, detector in detectors.items():
            state = detector.state_dict()
            arrays = {name: state[name].cpu().numpy() for name in _learned(detector)}
            cells[label] = Cell(arrays)
        return cells

    def load(self, store: Store) -> None:
        """Give the detectors what the store has, and leave out of the model those it lacks.

        Right after fitting, too: then every process goes on from the same bits.
        """
        for label, detector in self.detectors.items():
            cell = store.read(self.keys[label])
            if cell is None:
                del self.subject.detectors[label]
                continue
            state = detector.state_dict()
            for name, array in cell.arrays.items():
                # A copy, because the store's array must not change with the detector.
                state[name] = torch.from_numpy(array.copy())
            detector.load_state_dict(state)

    def _images(self) -> dict[Split, ImageSet]:
        images: dict[Split, ImageSet] = {"inliers": self.data.inliers("train")}
        splits: set[str] = set()
        for detector in self.detectors.values():
            splits.update(detector.learns_from)
        if "validation" in splits and self.data.names["validation"] is not None:
            images["validation"] = self.data.inliers("validation")
        if "outliers" in splits:
            outliers = self.data.outliers()
            if outliers is not None:
                images["outliers"] = outliers
        return images


def _content(images: ImageSet) -> str:
    contents = [chunk.content for chunk in chunks(images, None)]
    return fingerprint([contents, images.labels])


def _learned(detector: Detector) -> list[str]:
    """Return the names of all that is learned, in a detector and in those inside it."""
    names = []
    for prefix, module in detector.named_modules():
        if isinstance(module, Detector):
            for name in module.declared:
                names.append(f"{prefix}.{name}".lstrip("."))
    return names
