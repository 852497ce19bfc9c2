"""Fitting what a detector must learn, once: what was learned lies in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from robust_ood import detectors as detector_module
from robust_ood.data import EvaluationLoader, ImageSet
from robust_ood.detectors import Detector
from robust_ood.evaluation.batches import chunks
from robust_ood.evaluation.fingerprints import code_version, fingerprint
from robust_ood.evaluation.jobs import Job, Runner
from robust_ood.evaluation.store import Cell


def fit_missing(
    model: str,
    net: nn.Module,
    detectors: Mapping[str, Detector],
    train: Callable[[], ImageSet],
    batch_size: int,
    runner: Runner,
    before: Callable[[], None],
) -> dict[str, Detector]:
    """Return the detectors that are fitted, from the store where it has their state; the runner notes who fails.

    Args:
        model: whose detectors they are.
        net: the network, fingerprinted once for all.
        detectors: by label; those that are fitted already are left alone.
        train: gives the training images; asked only if something must be fitted.
        batch_size: images of a batch.
        runner: computes what the store does not have.
        before: called before anything is computed.
    """
    unfitted = {name: detector for name, detector in detectors.items() if not detector.fitted}
    if not unfitted:
        return dict(detectors)
    images = train()
    pixels = fingerprint([[part.content for part in chunks(images, None)], images.labels])
    known = {id(net): fingerprint(net)}
    keys = {
        name: fingerprint(["fit", code_version(), fingerprint(detector, known), pixels])
        for name, detector in unfitted.items()
    }

    def compute(labels: Sequence[str]) -> dict[str, Cell]:
        before()
        chosen = {label: unfitted[label] for label in labels}
        detector_module.fit(chosen.values(), EvaluationLoader(images, batch_size=batch_size))
        return {label: _state(detector) for label, detector in chosen.items()}

    name, title = f"fit-{fingerprint([known[id(net)], pixels])}", f"{model}: fitting {', '.join(unfitted)}"
    runner.run([Job(name, title, model, "none", "fit", keys, 4.0 * len(images), compute)])
    fitted = dict(detectors)
    for label, detector in unfitted.items():
        cell = runner.store.read(keys[label])
        if cell is None:
            del fitted[label]
        else:
            _load(detector, cell)
    return fitted


def _learned(detector: Detector) -> list[str]:
    """Return the names of all that is learned, in a detector and in those inside it."""
    parts = [(prefix, part) for prefix, part in detector.named_modules() if isinstance(part, Detector)]
    return [f"{prefix}.{name}".lstrip(".") for prefix, part in parts for name in part.declared]


def _state(detector: Detector) -> Cell:
    state = detector.state_dict()
    return Cell({name: state[name].cpu().numpy() for name in _learned(detector)}, {})


def _load(detector: Detector, cell: Cell) -> None:
    """Load what the store has, also right after fitting: then every process goes on from the same bits."""
    learned = {name: torch.from_numpy(array.copy()) for name, array in cell.arrays.items()}
    detector.load_state_dict({**detector.state_dict(), **learned})
