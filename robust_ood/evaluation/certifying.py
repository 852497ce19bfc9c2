"""Plans certificates: what is certified and attacked of each network, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from robust_ood.attacks import Attack
from robust_ood.detectors import Detector
from robust_ood.evaluation.certificates import (
    Certificate,
    IntervalCertificate,
    SmoothingCertificate,
)
from robust_ood.evaluation.certified import certificate_tasks, largest_rate
from robust_ood.evaluation.scoring import Scorer, TestSet, as_input
from robust_ood.evaluation.tasks import Model, ScoreTask, Task


class CertifiedModel(NamedTuple):
    """A network with its smoothed detectors, and the attacks that go through those."""

    model: Model
    attacks: Mapping[str, Attack]


def with_attacks(
    attacks: Mapping[str, Attack], certificates: Sequence[Certificate]
) -> dict[str, Attack]:
    """Return the attacks, with PGD at each Linf radius that is guaranteed but not attacked."""
    joined = dict(attacks)
    attacked = set()
    for attack in attacks.values():
        settings = attack.settings()
        attacked.add((settings["norm"], settings["radius"]))
    for certificate in certificates:
        if isinstance(certificate, IntervalCertificate):
            for label, attack in certificate.attacks().items():
                settings = attack.settings()
                if (settings["norm"], settings["radius"]) not in attacked:
                    joined[label] = attack
    return joined


def plan(
    model: Model,
    certificates: Sequence[Certificate],
    sets: Sequence[TestSet],
    scorer: Scorer,
) -> tuple[list[CertifiedModel], list[str]]:
    """Plan the certificates of a network whose detectors are fitted.

    Guaranteed bounds become tasks of the model itself, beside its rows; smoothed detectors are
    detectors of their own.

    Returns:
        The network with each kind of smoothed detectors, and notes for the user.

    Raises:
        UserError: what cannot be certified.
    """
    planned = []
    notes = []
    for certificate in certificates:
        scorer.bring(model.net, model.detectors)
        image = _first_image(sets, scorer)
        if isinstance(certificate, IntervalCertificate):
            certificate.check(model.detectors, image)
            labels = certificate.bounded(model.detectors)
            others = [label for label in model.detectors if label not in labels]
            if others:
                notes.append(
                    f"{model.name}: no interval bounds are known for {', '.join(others)}, so "
                    "nothing is guaranteed there"
                )
            model.tasks += certificate_tasks(model, labels, certificate, sets, scorer)
            continue
        certificate.check(model.detectors, image, largest_rate(sets))
        planned.append(_smoothed(model, certificate, sets, scorer))
    return planned, notes


def _smoothed(
    model: Model, certificate: SmoothingCertificate, sets: Sequence[TestSet], scorer: Scorer
) -> CertifiedModel:
    detectors: dict[str, Detector] = {}
    for label, detector in model.detectors.items():
        detectors[certificate.title(label)] = certificate.smoothed(detector)
    smoothed = Model(model.name, model.net, detectors)
    attacks: dict[str, Attack] = dict(certificate.attacks())
    smoothed.tasks += certificate_tasks(smoothed, list(detectors), certificate, sets, scorer)
    smoothed.tasks += _score_tasks(smoothed, attacks, sets, scorer)
    return CertifiedModel(smoothed, attacks)


def _score_tasks(
    model: Model, attacks: Mapping[str, Attack], sets: Sequence[TestSet], scorer: Scorer
) -> Iterator[Task]:
    budgets: dict[str, Attack | None] = {"none": None, **attacks}
    for name in model.detectors:
        group = {name: model.fingerprint(name)}
        for label, attack in budgets.items():
            for index, test_set in enumerate(sets):
                if attack is not None and not test_set.is_certified:
                    continue
                if test_set.group == "shifted":
                    continue
                for chunk in test_set.chunks:
                    yield ScoreTask(model, group, test_set, index, chunk, label, attack, scorer)


def _first_image(sets: Sequence[TestSet], scorer: Scorer) -> Tensor:
    """Return one image `(1, C, H, W)`, or none where it cannot be read."""
    return as_input(sets[0].chunks[0].read().images[:1], scorer.device)
