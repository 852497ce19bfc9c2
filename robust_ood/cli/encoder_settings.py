"""The settings of `robust-ood encoder-attack`, read and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from robust_ood.attacks.encoder import CODES, EncoderAttack
from robust_ood.cli.networks import add_network_arguments
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.detectors import Detector
from robust_ood.errors import UserError, nearest, unknown_setting
from robust_ood.evaluation.matching import Matching
from robust_ood.regions import Fraction, region_of
from robust_ood.texts import shown

Part = str | dict[str, Any]
EACH = "each"
"""Of which detector a code is, where it is matched for each by itself."""

_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "include": (list[str], [], "config files that this one builds on"),
    "output": (Path, Path("encoder_attack"), "folder of results, report and all computed"),
    "name": (str | None, None, "model name in the rows (default: checkpoint's folder)"),
    "match": (
        str | dict[str, Any] | list[Part],
        ["features"],
        f"what is matched: {', '.join(CODES)}, or {{code: logits, of: DETECTOR}}",
    ),
    "starts": (
        str | dict[str, Any] | list[Part],
        ["noise"],
        "noise, spirals, checkerboard, grey, a picture's path, a set",
    ),
    "detectors": (list[Part], ["msp"], "names, or name and settings"),
    "norm": (Literal["L2", "Linf"], "L2", "of the ball around the start"),
    "radius": (Fraction, 10.0, "of the ball around the start"),
    "steps": (int, 1000, "iterations of Adamax"),
    "learning_rate": (float | None, None, "of Adamax (default: radius / 100)"),
    "random_start": (bool, True, "begin at a random point of the ball"),
    "restarts": (int, 1, "runs from random starts; each pair keeps its best"),
    "seed": (int, 0, "of drawn start images and random starts"),
    "limit": (int | None, None, "how many pairs (default: all test images)"),
    "batch_size": (int, 100, "pairs that are attacked and stored at a time"),
    "report": (bool, True, "end with report.html in the output folder"),
    "device": (str, "auto", "auto, cpu, cuda or cuda:N"),
}
"""By name, type, default and help of the plain options."""


def parser() -> ArgumentParser:
    """Return the parser of the encoder-attack command."""
    register_types()
    parser = CommandParser(
        prog="robust-ood encoder-attack",
        description="Make OOD images that a network encodes like in-distribution ones.",
    )
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="YAML file; several compose"
    )
    add_network_arguments(parser)
    for name, (kind, default, words) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=words)
    parser.add_class_arguments(OODData, "data")
    return parser


def as_list(given: Any) -> list[Part]:
    """Return what a user wrote as one value or as several."""
    if isinstance(given, str | Mapping):
        return [given if isinstance(given, str) else dict(given)]
    return list(given)


def read_attack(config: Any) -> EncoderAttack:
    """Return the attack. Raises: `UserError` naming the field."""
    return EncoderAttack(
        region_of(config.norm, config.radius),
        steps=config.steps,
        learning_rate=config.learning_rate,
        random_start=config.random_start,
        seed=config.seed,
        restarts=config.restarts,
    )


def read_matchings(given: Any) -> list[Matching]:
    """Return what is matched, as far as the config says.

    Raises: `UserError` for an unknown code or setting, or nothing to match.
    """
    matchings = []
    for part in as_list(given):
        settings: Mapping[str, Any] = {"code": part} if isinstance(part, str) else part
        for name in settings:
            if name not in ("code", "of"):
                raise unknown_setting(f"match.{name}", ["match.code", "match.of"])
        code = settings.get("code")
        if code not in CODES:
            near = nearest(str(code), CODES)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UserError(
                f"match: expected {', '.join(CODES)}, or {{code: CODE, of: DETECTOR}}, got "
                f"{shown(code)}{hint}"
            )
        matching = Matching(code, settings.get("of"))
        if matching in matchings:
            raise UserError(f"match: {matching.label!r} is duplicated")
        matchings.append(matching)
    if not matchings:
        raise UserError(f"match: nothing given; expected {', '.join(CODES)}")
    return matchings


def with_detectors(
    matchings: Sequence[Matching], detectors: Mapping[str, Detector]
) -> list[tuple[Matching, list[str]]]:
    """Return each matching with the labels of the detectors that score its images.

    What is of `each`, as a score is by default, is matched for each detector by itself, and its
    images are scored by that one.

    Raises: `UserError` for a detector that is not among the detectors.
    """
    planned = []
    for matching in matchings:
        if matching.of == EACH or (matching.is_of_score and matching.of is None):
            for label in detectors:
                planned.append((Matching(matching.code, label), [label]))
            continue
        if matching.of is not None and matching.of not in detectors:
            near = nearest(str(matching.of), detectors)
            hint = f"; did you mean {near!r}?" if near else ""
            raise UserError(
                f"match.of: {shown(matching.of)} is none of the detectors "
                f"({', '.join(detectors)}), nor 'each'{hint}"
            )
        planned.append((matching, list(detectors)))
    return planned
