"""Scores of several detectors on the same images, with one forward pass for each network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robust_ood.detectors.contract import Detector, OutputsDetector, full_precision, widened
from robust_ood.models import outputs
from robust_ood.modes import evaluating


def score_images(detectors: Mapping[str, Detector], images: Tensor) -> dict[str, Tensor]:
    """Return each detector's scores `(N,)`, on the CPU, of float images `(N, C, H, W)`.

    Detectors that read the outputs of one network share a forward pass.
    """
    scores: dict[str, Tensor] = {}
    with evaluating(*detectors.values()), torch.no_grad():
        for net, readers in _by_network(detectors):
            layers: set[str] = set()
            for reader in readers.values():
                layers.update(reader.layers)
            out = widened(outputs(net, images, tuple(sorted(layers))))
            with full_precision(images):
                for name, reader in readers.items():
                    scores[name] = reader.score(out).cpu()
        for name, detector in detectors.items():
            if name not in scores:
                scores[name] = detector(images).cpu()
    return scores


def _by_network(
    detectors: Mapping[str, Detector],
) -> list[tuple[nn.Module, dict[str, OutputsDetector]]]:
    groups: dict[int, tuple[nn.Module, dict[str, OutputsDetector]]] = {}
    for name, detector in detectors.items():
        if isinstance(detector, OutputsDetector):
            _, readers = groups.setdefault(id(detector.net), (detector.net, {}))
            readers[name] = detector
    return list(groups.values())
