"""Scores of whole sets: clean ones with shared forward passes, attacked ones through each
detector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from robust_ood.attacks import LabelAttack, ScoreAttack, attack_score, misclassify
from robust_ood.attacks.objectives import Direction
from robust_ood.data import Batch, to_float
from robust_ood.detectors import Detector, OutputsDetector
from robust_ood.detectors.contract import full_precision, widened
from robust_ood.models import outputs
from robust_ood.modes import evaluating


def clean_scores(
    detectors: Mapping[str, Detector], loader: Iterable[Batch], device: torch.device
) -> dict[str, Tensor]:
    """Return each detector's scores `(N,)` of all images; detectors that read one network's outputs
    share a pass.
    """
    parts = [score_images(detectors, on_device(batch, device)) for batch in loader]
    return {name: torch.cat([part[name] for part in parts]) for name in detectors}


def score_images(detectors: Mapping[str, Detector], images: Tensor) -> dict[str, Tensor]:
    """Return each detector's scores `(N,)`, on the CPU, of float images; one pass serves all that
    share a network.
    """
    scores: dict[str, Tensor] = {}
    with evaluating(*detectors.values()), torch.no_grad():
        for net, readers in _by_network(detectors):
            layers = tuple(
                sorted({layer for reader in readers.values() for layer in reader.layers})
            )
            out = widened(outputs(net, images, layers))
            with full_precision(images):
                scores |= {name: reader.score(out).cpu() for name, reader in readers.items()}
        scores |= {name: d(images).cpu() for name, d in detectors.items() if name not in scores}
    return scores


def attacked_scores(
    detector: Detector,
    loader: Iterable[Batch],
    attack: ScoreAttack,
    direction: Direction,
    device: torch.device,
) -> Tensor:
    """Return the detector's true scores `(N,)` of all images after an attack through it."""
    parts = [
        attack_score(
            detector, on_device(batch, device), attack, direction, indices=batch.indices
        ).values.cpu()
        for batch in loader
    ]
    return torch.cat(parts)


def correct(
    net: nn.Module, loader: Iterable[Batch], attack: LabelAttack | None, device: torch.device
) -> Tensor:
    """Return whether each image, attacked where an attack is given, is classified correctly, bool
    `(N,)`.
    """
    parts = []
    for batch in loader:
        images, labels = on_device(batch, device), batch.labels.to(device)
        if attack is not None:
            images = misclassify(net, images, labels, attack, indices=batch.indices)
        with evaluating(net), torch.no_grad():
            parts.append((net(images).argmax(1) == labels).cpu())
    return torch.cat(parts)


def on_device(batch: Batch, device: torch.device) -> Tensor:
    """Return the batch's images as floats in [0, 1], in channels-last memory, on the device."""
    return as_input(batch.images, device)


def as_input(images: Tensor, device: torch.device) -> Tensor:
    """Return uint8 images as floats in [0, 1], in channels-last memory, on the device."""
    return to_float(images.to(device)).contiguous(memory_format=torch.channels_last)


def _by_network(
    detectors: Mapping[str, Detector],
) -> list[tuple[nn.Module, dict[str, OutputsDetector]]]:
    groups: dict[int, tuple[nn.Module, dict[str, OutputsDetector]]] = {}
    for name, detector in detectors.items():
        if isinstance(detector, OutputsDetector):
            groups.setdefault(id(detector.net), (detector.net, {}))[1][name] = detector
    return list(groups.values())
