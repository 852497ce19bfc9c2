"""Certificates as tasks in the store, and what they add to the rows beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robust_ood import bounds, certify
from robust_ood.attacks import Attack
from robust_ood.certify.bounds import score_bounds
from robust_ood.detectors import Detector
from robust_ood.detectors.sharing import score_images
from robust_ood.detectors.smoothing import Smoothed
from robust_ood.evaluation.certificates import (
    Certificate,
    Cost,
    IntervalCertificate,
    SmoothingCertificate,
)
from robust_ood.evaluation.fingerprints import fingerprint
from robust_ood.evaluation.scoring import Chunk, Scorer, TestSet, as_input
from robust_ood.evaluation.store import Cell, Store
from robust_ood.evaluation.tasks import Model, Task
from robust_ood.evaluation.versions import code_version

_TIMED = 64  # noisy copies


class CertifyTask(Task):
    """Bounds of the scores of detectors on one chunk, at all radii of a certificate.

    Args:
        model: whose detectors they are; those of smoothing are `Smoothed`.
        labels: of the detectors, which share the noisy passes.
        certificate: its settings.
        alpha: of each bound; 0 for guaranteed ones.
        set_index, chunk: the images, and the position of their set.
        scorer: has the device.
    """

    stage = "certify"

    def __init__(
        self,
        model: Model,
        labels: Sequence[str],
        certificate: Certificate,
        alpha: float,
        set_index: int,
        chunk: Chunk,
        scorer: Scorer,
    ) -> None:
        self.subject = model
        self.model = model.name
        self.attack = certificate.name
        self.certificate = certificate
        self.alpha = alpha
        self.set_index = set_index
        self.chunk = chunk
        self.scorer = scorer
        asked: Any = {"radii": certificate.radii}
        self.work = float(len(chunk)) * 4 * len(certificate.radii)
        if isinstance(certificate, SmoothingCertificate):
            asked = {**certificate.question(), "alpha": alpha}
            self.work = float(len(chunk)) * certificate.draws / len(labels)
        inputs = [certificate.name, asked, chunk.content]
        # Noise is keyed by the images' indices, which a chunk's content does not hold.
        inputs += [chunk.start, chunk.stop]
        code = code_version("certificates")
        known = {id(model.net): model.net_fingerprint}
        self.keys = {}
        for label in labels:
            detector = fingerprint(self.certified_detector(label), known)
            self.keys[label] = fingerprint(["certify", code, detector, *inputs])
        self.name = fingerprint(["certificates", model.net_fingerprint, *inputs])
        place = f"{chunk.images.name} {chunk.start}-{chunk.stop}"
        self.title = f"{model.name}: {certificate.name} certificates on {place}"

    def run(self, labels: Sequence[str]) -> Mapping[str, Cell]:
        """Return the bounds, `(R, n)` for R radii, and those of the images themselves."""
        self.scorer.bring(self.subject.net, self.subject.detectors)
        begin = time.perf_counter()
        read = self.chunk.read()
        images = as_input(read.images, self.scorer.device)
        detectors = {label: self.certified_detector(label) for label in labels}
        arrays = self._arrays(detectors, images, read.indices)
        seconds = (time.perf_counter() - begin) / len(labels)
        about: dict[str, Any] = {
            "images": self.chunk.images.name,
            "start": self.chunk.start,
            "stop": self.chunk.stop,
            "code": code_version("certificates"),
            "seconds": seconds,
        }
        cells = {}
        for label, columns in arrays.items():
            cells[label] = Cell({"indices": read.indices.numpy(), **columns}, about)
        return cells

    def certified_detector(self, label: str) -> Detector:
        """Return the detector whose scores are bounded: the one inside a smoothed one."""
        detector = self.subject.detectors[label]
        if isinstance(self.certificate, SmoothingCertificate):
            assert isinstance(detector, Smoothed)
            return detector.detector
        return detector

    def _arrays(
        self, detectors: Mapping[str, Detector], images: Tensor, indices: Tensor
    ) -> dict[str, dict[str, Any]]:
        arrays: dict[str, dict[str, Any]] = {}
        if isinstance(self.certificate, IntervalCertificate):
            for label, detector in detectors.items():
                arrays[label] = self._guaranteed(detector, images)
            return arrays
        certificate = self.certificate
        found = score_bounds(
            detectors,
            images,
            radius=certificate.radii,
            sigma=certificate.sigma,
            draws=certificate.draws,
            alpha=self.alpha,
            quantile=certificate.quantile,
            seed=certificate.seed,
            indices=indices,
        )
        for label, bound in found.items():
            columns = {}
            for name in ("lower", "upper", "clean_lower", "clean_upper"):
                columns[name] = getattr(bound, name).numpy()
            arrays[label] = columns
        return arrays

    def _guaranteed(self, detector: Detector, images: Tensor) -> dict[str, Any]:
        with torch.no_grad():
            clean = detector(images).cpu().numpy()
            lower = []
            upper = []
            for radius in self.certificate.radii:
                lows = []
                highs = []
                for batch in torch.split(images, self.scorer.batches.size or len(images)):
                    interval = bounds.score_bounds(detector, batch, radius)
                    lows.append(interval.lower.cpu())
                    highs.append(interval.upper.cpu())
                lower.append(torch.cat(lows).float().numpy())
                upper.append(torch.cat(highs).float().numpy())
        return {
            "lower": np.stack(lower),  # (R, n)
            "upper": np.stack(upper),
            "clean_lower": clean,
            "clean_upper": clean,
        }


class CertifiedSide(NamedTuple):
    """Bounds of the scores of one set, `(N,)` each, in the ball and of the images themselves."""

    lower: Tensor
    upper: Tensor
    clean_lower: Tensor
    clean_upper: Tensor


class Brackets:
    """What certificates add to the rows of one model, read from the store.

    Args:
        tasks: of the model; those that certify are looked for.
        attacks: by label; a certificate stands beside those of its norm and radius.
        store: has the cells.
    """

    def __init__(self, tasks: Sequence[Task], attacks: Mapping[str, Attack], store: Store) -> None:
        self.store = store
        self._attacks = attacks
        self._tasks = [task for task in tasks if isinstance(task, CertifyTask)]

    def fields(self, detector: str, attack: str, attacked: str, set_index: int) -> dict[str, Any]:
        """Return the fields that a certificate adds to a row, none without one."""
        if attack not in self._attacks:
            return {}
        settings = self._attacks[attack].settings()
        inliers = self._side(detector, settings["norm"], settings["radius"], 0)
        outliers = self._side(detector, settings["norm"], settings["radius"], set_index)
        if inliers is None or outliers is None:
            return {}
        lower = inliers.lower if attacked in ("in", "both") else inliers.clean_lower
        upper = outliers.upper if attacked in ("out", "both") else outliers.clean_upper
        task = self._of(detector, settings["norm"], settings["radius"], 0)[0]
        fields: dict[str, Any] = {
            "lower": certify.certified_auroc(lower, upper),
            "fpr95_upper": certify.certified_fpr95(lower, upper),
            "detection_error_upper": certify.certified_detection_error(lower, upper),
            "bound": task.certificate.kind,
        }
        if isinstance(task.certificate, SmoothingCertificate):
            fields["sigma"] = task.certificate.sigma
            fields["draws"] = task.certificate.draws
            fields["alpha"] = min(1.0, task.alpha * (len(lower) + len(upper)))
        return fields

    def _of(self, detector: str, norm: str, radius: float, set_index: int) -> list[CertifyTask]:
        tasks = []
        for task in self._tasks:
            of_norm = "L2" if isinstance(task.certificate, SmoothingCertificate) else "Linf"
            fits = of_norm == norm and radius in task.certificate.radii
            if fits and detector in task.keys and task.set_index == set_index:
                tasks.append(task)
        return tasks

    def _side(
        self, detector: str, norm: str, radius: float, set_index: int
    ) -> CertifiedSide | None:
        """Return the bounds of a set, or None where some are missing."""
        columns: dict[str, list[Tensor]] = {name: [] for name in CertifiedSide._fields}
        tasks = self._of(detector, norm, radius, set_index)
        for task in tasks:
            cell = self.store.read(task.keys[detector])
            if cell is None:
                return None
            place = task.certificate.radii.index(radius)
            for name, pieces in columns.items():
                array = torch.from_numpy(cell.arrays[name])
                pieces.append(array[place] if array.dim() == 2 else array)
        if not tasks:
            return None
        return CertifiedSide(**{name: torch.cat(pieces) for name, pieces in columns.items()})


def certificate_tasks(
    model: Model,
    labels: Sequence[str],
    certificate: Certificate,
    sets: Sequence[TestSet],
    scorer: Scorer,
) -> Iterator[CertifyTask]:
    """Yield the tasks of a certificate: one for each chunk, which all detectors share."""
    alpha = 0.0
    if isinstance(certificate, SmoothingCertificate):
        alpha = certificate.bound_alpha(largest_rate(sets))
    for index, test_set in enumerate(sets):
        if not test_set.is_certified:
            continue
        for chunk in test_set.chunks:
            yield CertifyTask(model, labels, certificate, alpha, index, chunk, scorer)


def largest_rate(sets: Sequence[TestSet]) -> int:
    """Return the images of the in-distribution and of the largest OOD set together."""
    sizes = []
    for test_set in sets:
        if test_set.is_certified:
            sizes.append(sum(map(len, test_set.chunks)))
    return sizes[0] + max(sizes[1:])


def cost_of(tasks: Sequence[Task], store: Store, scorer: Scorer) -> Cost | None:
    """Return what the certificates that are missing will cost, or None without any."""
    passes = 0
    seconds = 0.0
    pace: dict[int, float] = {}
    for task in tasks:
        if not isinstance(task, CertifyTask) or not task.missing(store):
            continue
        if not isinstance(task.certificate, SmoothingCertificate):
            passes += 4 * len(task.chunk) * len(task.certificate.radii)
            continue
        passes += len(task.chunk) * task.certificate.draws
        model = id(task.subject)
        if model not in pace:
            pace[model] = _seconds(task, scorer)
        seconds += len(task.chunk) * task.certificate.draws * pace[model]
    if not passes:
        return None
    return Cost(passes, seconds or None)


def _seconds(task: CertifyTask, scorer: Scorer) -> float:
    """Return how long one noisy copy takes, from a few of them."""
    scorer.bring(task.subject.net, task.subject.detectors)
    detectors = {label: task.certified_detector(label) for label in task.keys}
    images = as_input(task.chunk.read().images[:1], scorer.device)
    copies = images.repeat(_TIMED, 1, 1, 1)
    score_images(detectors, copies)  # the first pass prepares
    begin = time.perf_counter()
    for scores in score_images(detectors, copies).values():
        scores.cpu()
    return (time.perf_counter() - begin) / _TIMED
