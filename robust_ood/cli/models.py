"""Which networks an evaluation is of, and attacks at several radii: how configs name several of a
thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robust_ood.cli.networks import name_of
from robust_ood.errors import UserError

Checkpoints = Path | list[Path]


class Models(NamedTuple):
    """Checkpoints by the name that rows carry, and the models of each recipe that was given several
    of.

    A network that brings its own weights has no checkpoint; where nobody names it, its name is "".
    """

    checkpoints: dict[str, Path | None]
    recipes: dict[str, list[str]]


def choose_models(
    checkpoint: Checkpoints | None, models: Mapping[str, Checkpoints] | None, name: str | None
) -> Models:
    """Return the networks to evaluate.

    Args:
        checkpoint: one or several files; each is called after its folder, or its folder and itself
            where that is not enough to tell them apart.
        models: files by name; several under one name are checkpoints of one recipe, called NAME-1,
            NAME-2, ...
        name: name of the one checkpoint.

    Raises:
        UserError: an empty list, a name for several, a name that stands twice.
    """
    given = [checkpoint] if isinstance(checkpoint, Path) else list(checkpoint or [])
    if not given and not models:
        return Models({name or "": None}, {})
    if name is not None and (len(given) != 1 or models):
        raise UserError(
            f"name: {name!r} is for one checkpoint; give several their names with models: {{NAME: FILE}}"
        )
    folders = [name_of(path, None) for path in given]
    alike = {folder for folder in folders if folders.count(folder) > 1}
    named: list[tuple[str, Path | None]] = [
        (name or (f"{folder}/{path.stem}" if folder in alike else folder), path)
        for folder, path in zip(folders, given, strict=True)
    ]
    recipes: dict[str, list[str]] = {}
    for recipe, files in (models or {}).items():
        if isinstance(files, Path):
            named.append((recipe, files))
            continue
        if not files:
            raise UserError(f"models.{recipe}: no checkpoint; a file or a list of files is wanted")
        recipes[recipe] = [f"{recipe}-{number}" for number in range(1, len(files) + 1)]
        named += zip(recipes[recipe], files, strict=True)
    names = [label for label, _ in named]
    for label in names:
        if names.count(label) > 1:
            raise UserError(
                f"models: {label!r} stands twice; give each its own name with models: {{NAME: FILE}}"
            )
    return Models(dict(named), recipes)


def several_checkpoints(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which a repeated `--checkpoint` adds a file instead of
    replacing the first.
    """
    joined = [part for argument in arguments for part in _parted(argument)]
    if joined.count("--checkpoint") < 2:
        return list(arguments)
    return ["--checkpoint+" if part == "--checkpoint" else part for part in joined]


def _parted(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--checkpoint=") else [argument]


def each_radius(attacks: Sequence[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
    """Return a config's attacks with one for each radius of those that list several: `radius:
    [2/255, 4/255]`.
    """
    found: list[str | dict[str, Any]] = []
    for attack in attacks:
        radii = attack.get("radius") if isinstance(attack, dict) else None
        if not isinstance(attack, dict) or not isinstance(radii, list):
            found.append(attack)
            continue
        if not radii:
            raise UserError(
                f"attacks.{attack.get('name')}.radius: [] lists no radius; one or several are wanted"
            )
        for radius in radii:
            label = {"label": f"{attack['label']}-{radius}"} if "label" in attack else {}
            found.append({**attack, **label, "radius": radius})
    return found
