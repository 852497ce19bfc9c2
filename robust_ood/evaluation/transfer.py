"""How attacks on one member of an ensemble carry over to the others, and to the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_ood.attacks import attack_score
from robust_ood.detectors import Detector, Mean
from robust_ood.errors import UserError
from robust_ood.evaluation.picture_settings import TransferSettings
from robust_ood.evaluation.scene import Drawing, Scene, Side, batches_of

CLEAN = "none"
ENSEMBLE = "ensemble"


def is_ensemble(detector: Detector) -> bool:
    """Return whether a detector is a mean of several others."""
    return isinstance(detector, Mean) and len(detector.labels) > 1


def transfer(detector: Detector, scene: Scene, settings: TransferSettings | None = None) -> Drawing:
    """Return scores `(sources, targets, N)` of each side, attacked through each member.

    Source: Fort 2022, Sec. 2.7: the attack on an ensemble is one on its score. Here it stands
    beside the attacks on single members, so that one sees what carries over. The first source is
    none (clean images), the last one the ensemble, which is also the last target. The attack is
    that of the largest radius.
    """
    settings = settings or TransferSettings()
    if scene.attack is None:
        raise UserError("attacks: none given, so there is none to carry over")
    if not isinstance(detector, Mean):
        raise UserError("transfer: the detector has no members")
    scorers = [*detector.inside, detector]
    arrays: dict[str, NDArray[Any]] = {}
    names = {}
    for side in scene.many:
        few = side._replace(images=side.images[: settings.images])
        moved = side.name != "in" or settings.attacked == "both"
        arrays[f"{side.name}_scores"] = _scores(scorers, few, scene, moved=moved)
        names[side.name] = side.sets[0]
    facts = {
        "members": list(detector.labels),
        "attack": scene.label,
        "attacked": settings.attacked,
        "sets": names,
    }
    return arrays, {**facts, **scene.attack.settings()}


def _scores(
    scorers: Sequence[Detector], side: Side, scene: Scene, *, moved: bool
) -> NDArray[np.float32]:
    """Return the scores `(sources, targets, N)` of one side's images."""
    assert scene.attack is not None
    clean = _of_all(scorers, side.images, scene.batch_size)  # (targets, N)
    rows = [clean]
    for source in scorers:
        if not moved:
            rows.append(clean)
            continue
        batches = []
        for batch in batches_of(side.images, scene.batch_size):
            batches.append(attack_score(source, batch, scene.attack, side.direction).images)
        rows.append(_of_all(scorers, torch.cat(batches), scene.batch_size))
    return np.asarray(torch.stack(rows).float().cpu().numpy())


def _of_all(scorers: Sequence[Detector], images: Tensor, batch_size: int) -> Tensor:
    """Return the scores `(targets, N)` of images by each detector."""
    columns = []
    with torch.no_grad():
        for batch in batches_of(images, batch_size):
            columns.append(torch.stack([scorer(batch) for scorer in scorers]))
    return torch.cat(columns, dim=1)
