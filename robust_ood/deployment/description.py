"""What a guard's folder says of the guard, in words and numbers: `guard.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from robust_ood.deployment.preprocessing import Preprocessing
from robust_ood.deployment.tolerance import Threshold
from robust_ood.detectors.registry import REGISTRY
from robust_ood.errors import UserError, unknown_name

SCHEMA = 1


@dataclass(frozen=True)
class Measured:
    """How many images of a set were accepted at the guard's threshold.

    Args:
        images: the set.
        group: "id", or that of an OOD set, "near", "far" or "validation_ood".
        attack: its label; "none" for clean images.
        accepted: how many of them were accepted; under attack, each at its worst.
        count: how many were scored.
        radius: of the attack, in pixel fractions, >= 0.
        norm: of the radius; empty without an attack.
    """

    images: str
    group: str
    attack: str
    accepted: int
    count: int
    radius: float = 0.0
    norm: str = ""

    @property
    def share(self) -> float:
        """The accepted share, in [0, 1]."""
        return self.accepted / self.count


@dataclass(frozen=True)
class Description:
    """All of a guard but its tensors.

    Args:
        detector: its registered name and settings, as a config writes them.
        threshold: and its promise.
        preprocessing: what is done to images first.
        calibrated_on: the set whose images the threshold is from.
        rounding: how much a score may differ by rounding; the threshold is lower by it.
        class_names: one for each class, or none.
        measured: what was accepted at the threshold.
        training: plain values on what trained the network.
        versions: of this package, Python and torch.
        created: date and time, UTC.
        id: SHA-256 of everything in the folder; empty until it is written.
    """

    detector: Mapping[str, Any]
    threshold: Threshold
    preprocessing: Preprocessing
    calibrated_on: str
    rounding: float = 0.0
    class_names: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    id: str = ""

    @property
    def label(self) -> str:
        """What the detector is called."""
        return str(self.detector.get("label") or self.detector["name"])

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `guard.json`, without the files' sums."""
        content = asdict(self)
        content["promise"] = self.threshold.in_words()
        return {"schema": SCHEMA, **content}


def read_description(content: Mapping[str, Any], place: str) -> Description:
    """Return the description that `guard.json` holds.

    Args:
        content: of the file.
        place: the file, for messages.

    Raises: `UserError` for another schema, or fields that are missing or malformed.
    """
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"guard: {place} has schema {content.get('schema')!r}; this version reads {SCHEMA}"
        )
    try:
        measured = tuple(Measured(**entry) for entry in content["measured"])
        description = Description(
            detector=dict(content["detector"]),
            threshold=Threshold(**content["threshold"]),
            preprocessing=Preprocessing(**content["preprocessing"]),
            calibrated_on=str(content["calibrated_on"]),
            rounding=float(content["rounding"]),
            class_names=tuple(map(str, content["class_names"])),
            measured=measured,
            training=dict(content["training"]),
            versions=dict(content["versions"]),
            created=str(content["created"]),
            id=str(content["id"]),
        )
    except UserError as error:
        raise UserError(f"guard: {place}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"guard: {place} is damaged ({error})") from error
    refuse_code(description.detector)
    return description


def refuse_code(detector: Mapping[str, Any]) -> None:
    """Raise `UserError` for a detector that is not a registered one.

    A guard's folder must not choose what code runs, or which other files are read.
    """
    for name in _names(detector):
        if name == "deep-ensemble":
            raise UserError(
                "detectors: deep-ensemble reads networks of other files, which a guard's folder "
                "does not hold"
            )
        if name not in REGISTRY:
            if "." in name:
                raise UserError(
                    f"detectors: {name!r} is a class of your own; a guard's folder may name only "
                    "registered detectors, because it must not choose what code runs"
                )
            raise unknown_name("detectors", name, REGISTRY)


def _names(part: Any) -> list[str]:
    """Return the names of a detector and of the scores inside it."""
    if isinstance(part, str):
        return [part]
    names: list[str] = []
    if isinstance(part, list | tuple):
        for inside in part:
            names += _names(inside)
    elif isinstance(part, Mapping):
        names.append(str(part.get("name")))
        for setting in ("score", "scores"):
            # deep-ensemble's `score` is a word, and the detector is refused by its name before
            if setting in part:
                names += _names(part[setting])
    return names
