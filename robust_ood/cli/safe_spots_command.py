"""`robust-ood safe-spots`: accuracy on safe spots and under attack around them, and the losses."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from robust_ood import certify, losses, safe_spots
from robust_ood.cli.papers.subject import Options, Subject, build_subject, measuring_parser
from robust_ood.cli.papers.subject import read_config as read_settings
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.quiet import quiet
from robust_ood.data import ImageSet
from robust_ood.data.reading import Batch
from robust_ood.errors import UserError
from robust_ood.evaluation.store import Arrays
from robust_ood.evaluation.text_tables import plain
from robust_ood.inputs import logits_of
from robust_ood.regions import Fraction
from robust_ood.reporting.papers.item_figures import LOSSES
from robust_ood.reporting.papers.measured import Measurement, write_measurements
from robust_ood.reporting.papers.published import ResultKey
from robust_ood.writing import replace_file

METHODS = {"none": "", "fgsm": "S-FGSM", "pgd": "S-PGD", "full": "S-Full"}
"""By setting, the paper's name of the images on which the search ends."""

_OPTIONS: Options = {
    "methods": (
        list[Literal["none", "fgsm", "pgd", "full"]],
        list(METHODS),
        "which searches; none leaves the images as they are",
    ),
    "norm": (Literal["Linf", "L2"], "Linf", "of defender and attacker"),
    "radius": (Fraction, Fraction("8/255"), "of defender and attacker, pixel fractions"),
    "search_steps": (int | None, None, "of the full search (default: the paper's 100)"),
    "search_rate": (float | None, None, "its learning rate (default: the public code's)"),
    "attack_steps": (int, 20, "of the attacker, each a quarter of the radius"),
    "sigma": (float, 0.0, "noise of a smoothed classifier; 0: the network as it is"),
    "draws": (int, 1000, "of noise for the smoothed classifier's vote"),
    "samples": (int, 16, "of noise at each step of search and attack"),
    "losses": (
        bool,
        False,
        "also the losses of inliers and OOD sets, on images and attacked spots",
    ),
}


def parser() -> CommandParser:
    """Return the parser of the command."""
    return measuring_parser(
        "safe-spots", "Measure accuracy on safe spots and under attack around them.", _OPTIONS
    )


def run(arguments: Sequence[str]) -> int:
    """Measure, write the results and return the exit code."""
    quiet()
    commands = parser()
    config = read_settings(commands, arguments)
    _check(config)
    subject = build_subject(commands, config)
    measurements = list(_accuracies(subject))
    config.output.mkdir(parents=True, exist_ok=True)
    if config.losses:
        _write_losses(subject)
    write_measurements(config.output, measurements)
    console = Console()
    for measurement in measurements:
        for metric, value in measurement.values.items():
            attacked = "clean" if measurement.key.attacked == "none" else "attacked"
            console.print(plain(f"{subject.name}: {metric}, {attacked}: {value:.3f}"))
    return 0


def _check(config: Any) -> None:
    for name in ("attack_steps", "draws", "samples"):
        if config[name] < 1:
            raise UserError(f"{name}: expected a number >= 1, got {config[name]}")
    if config.sigma < 0:
        raise UserError(f"sigma: expected a deviation >= 0, got {config.sigma}")
    if config.sigma and config.norm != "L2":
        raise UserError(f"norm: {config.norm}, but smoothing (sigma) resists L2")
    if config.sigma and config.losses:
        raise UserError("losses: true is for the network as it is; leave sigma out")
    if not config.methods:
        raise UserError(f"methods: none given; accepted: {', '.join(METHODS)}")


def _accuracies(subject: Subject) -> list[Measurement]:
    """Return the accuracy on each method's images, before and after the attack."""
    config = subject.config
    measurements = []
    for method in config.methods:
        clean = []
        attacked = []
        for batch in subject.batches(subject.test):
            what = [_settings(config), method, batch.images.cpu(), batch.labels.cpu()]
            found = subject.kept(what, lambda b=batch, m=method: _right(subject, b, m))  # type: ignore[misc]
            clean.append(found["clean"])
            attacked.append(found["attacked"])
        metric = "accuracy"
        if method != "none":
            metric = f"accuracy of {METHODS[method]} images"
        name = subject.name
        if config.sigma:
            name = f"{name}+Smoothing"
        key = ResultKey(name, "", subject.test.name, "", "none", "none", 0.0)
        values = {metric: float(np.concatenate(clean).mean())}
        measurements.append(Measurement(key, values))
        key = key._replace(attacked="in", norm=config.norm, radius=float(config.radius))
        values = {metric: float(np.concatenate(attacked).mean())}
        measurements.append(Measurement(key, values))
    return measurements


def _settings(config: Any) -> list[Any]:
    """Return the settings on which a batch's numbers depend."""
    return [str(config[name]) for name in _OPTIONS if name not in ("methods", "losses")]


def _right(subject: Subject, batch: Batch, method: str) -> Arrays:
    """Return which images `(N,)` are right on their safe spots, and also after the attack."""
    if subject.config.sigma:
        return _right_smoothed(subject, batch, method)
    spots = _spots(subject, batch, method)
    moved = _attacked(subject, spots, batch.labels, batch.indices)
    clean = _classes(subject, spots) == batch.labels
    # An image that is wrong before the attack is wrong under the attacker who leaves it as it is.
    after = clean & (_classes(subject, moved) == batch.labels)
    return {"clean": clean.cpu().numpy(), "attacked": after.cpu().numpy()}


def _right_smoothed(subject: Subject, batch: Batch, method: str) -> Arrays:
    """Return the same for the smoothed classifier; its vote draws fresh noise."""
    config = subject.config
    classifier = certify.smoothed_classifier(subject.net, config.sigma, n=config.draws)
    spots = batch.images
    if method != "none":
        classes = classifier.predict(spots, indices=batch.indices, abstain=False)
        spots = _search(
            subject, batch, method, classes.to(spots.device),
            safe_spots.Smoothing(config.sigma, config.samples),
        )  # fmt: skip
    moved = classifier.attack(
        spots,
        batch.labels,
        float(config.radius),
        steps=config.attack_steps,
        samples=config.samples,
        indices=batch.indices,
    )
    known = batch.labels.cpu()
    clean = classifier.predict(spots, indices=batch.indices, abstain=False).cpu() == known
    after = classifier.predict(moved, indices=batch.indices, abstain=False).cpu() == known
    return {"clean": clean.numpy(), "attacked": (clean & after).numpy()}


def _spots(subject: Subject, batch: Batch, method: str) -> Tensor:
    """Return the images `(N, C, H, W)` that a method makes of a batch."""
    if method == "none":
        return batch.images
    return _search(subject, batch, method, None, None)


def _search(
    subject: Subject,
    batch: Batch,
    method: Any,
    labels: Tensor | None,
    smoothing: safe_spots.Smoothing | None,
) -> Tensor:
    config = subject.config
    steps = None
    rate = None
    if method == "full":
        steps = config.search_steps
        rate = config.search_rate
    return safe_spots.search(
        subject.net,
        batch.images,
        float(config.radius),
        config.norm,
        method,
        labels,
        steps=steps,
        step_size=rate,
        attack_steps=config.attack_steps,
        smoothing=smoothing,
        indices=batch.indices,
    )


def _attacked(subject: Subject, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
    config = subject.config
    return safe_spots.attack(
        subject.net,
        images,
        labels,
        float(config.radius),
        config.norm,
        steps=config.attack_steps,
        indices=indices,
    )


def _classes(subject: Subject, images: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = logits_of(subject.net(images)).argmax(1)
    return classes


def _write_losses(subject: Subject) -> None:
    """Write the losses of inliers and of each OOD set, as the paper's Fig. 3 draws them."""
    arrays = {}
    sets: list[tuple[str, ImageSet]] = [("id", subject.test), *subject.data.ood_sets()]
    method = subject.config.methods[-1]
    for group, images in sets:
        found: dict[str, list[Any]] = {"images": [], "spots": []}
        for batch in subject.batches(images):
            what = [_settings(subject.config), method, "losses", batch.images.cpu()]
            kept = subject.kept(what, lambda b=batch: _losses(subject, b, method))  # type: ignore[misc]
            for name, values in found.items():
                values.append(kept[name])
        for name, values in found.items():
            arrays[f"{group}: {images.name}: {name}"] = np.concatenate(values)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    replace_file(subject.config.output / LOSSES, content.getvalue())


def _losses(subject: Subject, batch: Batch, method: str) -> Arrays:
    """Return the losses `(N,)` of the predicted classes, at images and at attacked safe spots."""
    predicted = _classes(subject, batch.images)
    spots = _spots(subject, batch, method)
    moved = _attacked(subject, spots, predicted, batch.indices)
    values = {}
    for name, images in (("images", batch.images), ("spots", moved)):
        with torch.no_grad():
            loss = losses.cross_entropy(logits_of(subject.net(images)), predicted)
        values[name] = loss.float().cpu().numpy()
    return values
