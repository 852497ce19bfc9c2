"""What is computed for one chunk of images: scores, right answers, alarms."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robust_ood.attacks import PGD, Attack, attack_score
from robust_ood.attacks.apply import Attacked, attack_labels
from robust_ood.attacks.objectives import READ_CLASSIFIERS, Direction
from robust_ood.data.sets import Taken
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation import sanity
from robust_ood.evaluation.batches import Batches, Chunk
from robust_ood.evaluation.scores import as_input, score_images
from robust_ood.evaluation.store import Arrays, Cell
from robust_ood.modes import evaluating


class Account(NamedTuple):
    """What is kept of an attack on a batch, whose images are large: as in `Attacked`, on the
    CPU.
    """

    winners: Tensor
    members: tuple[str, ...]
    precisions: tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """Where and in which batches images are scored."""

    device: torch.device
    batches: Batches

    def score(
        self,
        detectors: Mapping[str, Detector],
        chunk: Chunk,
        attack: Attack | None,
        direction: Direction,
    ) -> dict[str, Cell]:
        """Return the scores of several detectors on the same images: clean, or attacked through any
        one of them.
        """
        begin, first = time.perf_counter(), next(iter(detectors.values()))

        def work(part: Taken) -> tuple[dict[str, Tensor], Account | None]:
            images, account = as_input(part.images, self.device), None
            if attack is not None:
                found = attack_score(first, images, attack, direction, indices=part.indices)
                images, account = found.images, _account(found)
            return score_images(detectors, images), account

        taken = chunk.read()
        parts = self.batches.map((*detectors, id(attack)), taken, work)
        own = attack is not None and sharing(attack, first) is None
        arrays, about = _winners([found for _, found in parts if found is not None and own])
        about["precisions"] = _precisions([found for _, found in parts if found is not None])
        about["seconds"] = (time.perf_counter() - begin) / len(detectors)
        cells = {}
        for name in detectors:
            scores = _joined(columns[name] for columns, _ in parts)
            if not scores.isfinite().all():
                raise UserError(
                    f"{int((~scores.isfinite()).sum())} of {len(scores)} scores are not finite"
                )
            cells[name] = Cell(
                {"scores": scores.float().numpy(), "indices": taken.indices.numpy(), **arrays},
                about,
            )
        return cells

    def classify(self, net: nn.Module, chunk: Chunk, attack: Attack | None) -> Cell:
        """Return which images are classified correctly, attacked where an attack is given."""
        begin = time.perf_counter()

        def work(part: Taken) -> tuple[Tensor, Account | None]:
            images, labels, account = (
                as_input(part.images, self.device),
                part.labels.to(self.device),
                None,
            )
            if attack is not None:
                found = attack_labels(net, images, labels, attack, indices=part.indices)
                images, account = found.images, _account(found)
            with evaluating(net), torch.no_grad():
                return (net(images).argmax(1) == labels).float().cpu(), account

        taken = chunk.read()
        parts = self.batches.map(("label", id(attack)), taken, work)
        arrays, about = _winners([found for _, found in parts if found is not None])
        about["precisions"] = _precisions([found for _, found in parts if found is not None])
        right = _joined(right for right, _ in parts)
        about["seconds"] = time.perf_counter() - begin
        return Cell({"scores": right.numpy(), "indices": taken.indices.numpy(), **arrays}, about)

    def check(
        self, detector: Detector, inliers: Chunk, outliers: Chunk, attacks: Iterable[Attack]
    ) -> Cell:
        """Return the alarms of a detector under attacks on a few images."""
        begin = time.perf_counter()
        low, high = (as_input(chunk.read().images, self.device) for chunk in (inliers, outliers))
        alarms = sanity.check(
            detector, low, high, *attacks, name="", limit=max(len(low), len(high))
        )
        found = [alarm.removeprefix(": ") for alarm in alarms]
        return Cell({}, {"warnings": found, "seconds": time.perf_counter() - begin})


def sharing(attack: Attack, detector: Detector) -> Hashable | None:
    """Return what all detectors on which this attack proposes the same images have in common; None
    for its own.

    A transferred attack on classifiers looks at nothing but them, so its images serve every
    detector that reads them.
    """
    if isinstance(attack, PGD) and attack.keep != "best" and attack.objective in READ_CLASSIFIERS:
        return tuple(id(net) for net in detector.networks) or None
    return None


def _account(found: Attacked) -> Account:
    return Account(found.winners.cpu(), found.members, found.precisions)


def _joined(parts: Iterable[Tensor]) -> Tensor:
    """Return the parts as one column; an empty one for a chunk of which no image can be read."""
    return torch.cat([torch.empty(0), *parts])


def _precisions(found: list[Account]) -> list[str]:
    """Return the precisions of the gradients that the attacks took."""
    return sorted({precision for one in found for precision in one.precisions})


def _winners(found: list[Account]) -> tuple[Arrays, dict[str, Any]]:
    """Return who found each image, as positions in a list of the members of all batches."""
    if not found:
        return {}, {}
    members = list(dict.fromkeys(name for one in found for name in one.members))
    places = [
        torch.tensor([members.index(name) for name in one.members])[one.winners] for one in found
    ]
    return {"winners": torch.cat(places).numpy().astype(np.int16)}, {"members": members}
