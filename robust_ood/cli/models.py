"""How configs name several of a thing: networks of an evaluation, and attacks at several radii."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robust_ood.cli.networks import name_of
from robust_ood.errors import UserError

Checkpoints = Path | list[Path]


class Models(NamedTuple):
    """Checkpoints by the name that rows carry, and the models of each recipe with several.

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
        UserError: an empty list, a name for several, a duplicated name.
    """
    files = checkpoint or []
    if isinstance(files, Path):
        files = [files]
    models = models or {}
    if not files and not models:
        return Models({name or "": None}, {})
    if name is not None and (len(files) != 1 or models):
        raise UserError(
            f"name: {name!r} is for one checkpoint; "
            "give several their names with models: {NAME: FILE}"
        )
    names = [name] if name else _names(files)
    named = list(zip(names, files, strict=True))
    recipes: dict[str, list[str]] = {}
    for recipe, members in models.items():
        if isinstance(members, Path):
            named.append((recipe, members))
            continue
        if not members:
            raise UserError(f"models.{recipe}: no checkpoint; expected a file or a list of files")
        recipes[recipe] = [f"{recipe}-{number}" for number in range(1, len(members) + 1)]
        named += zip(recipes[recipe], members, strict=True)
    checkpoints: dict[str, Path | None] = {}
    for label, path in named:
        if label in checkpoints:
            raise UserError(
                f"models: {label!r} is duplicated; "
                "give each its own name with models: {NAME: FILE}"
            )
        checkpoints[label] = path
    return Models(checkpoints, recipes)


def _names(files: Sequence[Path]) -> list[str]:
    """Return what rows call checkpoints: after their folders, and themselves if need be."""
    folders = [name_of(path, None) for path in files]
    names = []
    for folder, path in zip(folders, files, strict=True):
        shared = folders.count(folder) > 1
        if shared:
            names.append(f"{folder}/{path.stem}")
        else:
            names.append(folder)
    return names


def several_checkpoints(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which a repeated `--checkpoint` adds a file, and replaces none."""
    joined = []
    for argument in arguments:
        if argument.startswith("--checkpoint="):
            joined += argument.split("=", 1)
        else:
            joined.append(argument)
    if joined.count("--checkpoint") < 2:
        return list(arguments)
    adding = []
    for argument in joined:
        if argument == "--checkpoint":
            adding.append("--checkpoint+")
        else:
            adding.append(argument)
    return adding


def each_radius(attacks: Sequence[str | dict[str, Any]]) -> list[str | dict[str, Any]]:
    """Return attacks with one for each radius of those that list several: `[2/255, 4/255]`."""
    expanded: list[str | dict[str, Any]] = []
    for attack in attacks:
        if not isinstance(attack, dict) or not isinstance(attack.get("radius"), list):
            expanded.append(attack)
            continue
        if not attack["radius"]:
            raise UserError(
                f"attacks.{attack.get('name')}.radius: [] lists no radius; expected one or several"
            )
        for radius in attack["radius"]:
            single = {**attack, "radius": radius}
            if "label" in attack:
                single["label"] = f"{attack['label']}-{radius}"
            expanded.append(single)
    return expanded
