"""`robust-ood flagged`: which share of images that fool the classifier do detectors reject?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, misclassify
from robust_ood.cli.papers.subject import Options, Subject, build_subject, measuring_parser
from robust_ood.cli.papers.subject import read_config as read_settings
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.quiet import quiet
from robust_ood.data.reading import Batch
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation.store import Arrays
from robust_ood.evaluation.text_tables import plain
from robust_ood.inputs import logits_of
from robust_ood.modes import evaluating
from robust_ood.regions import Fraction
from robust_ood.reporting.papers.measured import Measurement, write_measurements
from robust_ood.reporting.papers.published import ResultKey

METRIC = "share rejected at 95 % TPR"
OOD = "adversarial examples for the classifier"

_OPTIONS: Options = {
    "detectors": (list[str | dict[str, Any]], ["msp"], "names, or name and settings"),
    "radius": (Fraction, Fraction("1/255"), "of the attack on the classifier, Linf"),
    "steps": (int, 10, "of the attack"),
    "step_size": (Fraction | None, None, "of the attack (default: 2.5 radius / steps)"),
}


def parser() -> CommandParser:
    """Return the parser of the command."""
    return measuring_parser(
        "flagged", "Measure how many images that fool the classifier detectors reject.", _OPTIONS
    )


def run(arguments: Sequence[str]) -> int:
    """Measure, write the results and return the exit code."""
    quiet()
    commands = parser()
    config = read_settings(commands, arguments)
    if config.steps < 1:
        raise UserError(f"steps: expected a number of steps >= 1, got {config.steps}")
    if not config.detectors:
        raise UserError("detectors: none given")
    subject = build_subject(commands, config)
    chosen = dict(detectors.build_all(config.detectors, subject.net))
    _fit(list(chosen.values()), subject)
    pairs = [_fooling(subject, batch) for batch in subject.batches(subject.test)]
    clean = torch.cat([images for images, _, _ in pairs])  # (N, C, H, W)
    moved = torch.cat([images for _, images, _ in pairs])
    fooled = torch.cat([wrong for _, _, wrong in pairs])
    measurements = []
    console = Console()
    for name, detector in chosen.items():
        share = _rejected(detector.to(subject.device), clean, moved[fooled])
        key = ResultKey(
            subject.name, name, subject.test.name, OOD, "both", "Linf", float(config.radius)
        )
        measurements.append(Measurement(key, {METRIC: share}))
        console.print(plain(f"{subject.name}, {name}: {METRIC}: {share:.3f}"))
    config.output.mkdir(parents=True, exist_ok=True)
    write_measurements(config.output, measurements)
    console.print(plain(f"{int(fooled.sum())} of {len(fooled)} attacked images are misclassified"))
    return 0


def _fit(chosen: Sequence[Detector], subject: Subject) -> None:
    unfitted = [detector for detector in chosen if not detector.fitted]
    if not unfitted:
        return
    data = subject.data
    outliers = None
    images = data.outliers()
    if images is not None:
        outliers = data.evaluation_loader(images, subject.config.limit)
    validation = None
    if data.names["validation"] is not None:
        validation = data.evaluation_loader(data.inliers("validation"))
    train = data.evaluation_loader(data.inliers("train"))
    detectors.fit(unfitted, train, validation=validation, outliers=outliers)


def _fooling(subject: Subject, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the images, what the attack makes of them, and which of these are misclassified."""
    config = subject.config
    attack = PGD(Linf(float(config.radius)), steps=config.steps, step_size=config.step_size)
    budget = [str(config[name]) for name in ("radius", "steps", "step_size")]

    def compute() -> Arrays:
        moved = misclassify(subject.net, batch.images, batch.labels, attack, indices=batch.indices)
        return {"images": moved.cpu().numpy()}

    kept = subject.kept(["flagged", budget, batch.images.cpu(), batch.labels.cpu()], compute)
    moved = torch.from_numpy(np.asarray(kept["images"])).to(subject.device)
    with torch.no_grad():
        wrong = logits_of(subject.net(moved)).argmax(1) != batch.labels
    return batch.images, moved, wrong


def _rejected(detector: Detector, clean: Tensor, moved: Tensor) -> float:
    """Return the share of moved images below the threshold that accepts 95 % of clean ones."""
    if not len(moved):
        return float("nan")
    with evaluating(detector), torch.no_grad():
        scores = torch.cat([detector(images) for images in torch.split(clean, 100)])
        after = torch.cat([detector(images) for images in torch.split(moved, 100)])
    threshold = scores.double().quantile(0.05, interpolation="lower")
    return float((after.double() < threshold).double().mean())
