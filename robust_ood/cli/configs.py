"""Configs that build on others: `include: [../data/digits.yaml, ...]` at the top of a YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from robust_ood.errors import UserError


def with_includes(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which each `-c FILE` is preceded by the files that FILE
    includes.

    Included names are relative to the including file. Later files override earlier ones, and a file
    overrides what it includes. See `find_config` for where a FILE is looked for.

    Raises:
        UserError: a missing or unreadable file, or files that include each other.
    """
    expanded: list[str] = []
    rest = iter(_joined(arguments))
    for argument in rest:
        found = re.fullmatch(r"(-c|--config)(?:=(.*))?|(-c)([^=].*)", argument)
        if found is None:
            expanded.append(argument)
            continue
        name = found[2] or found[4] or next(rest, None)
        if name is None:
            raise UserError(f"{argument}: a YAML file is wanted after it")
        for path in _chain(find_config(Path(name)), ()):
            expanded += ["-c", str(path)]
    return expanded


def find_config(path: Path) -> Path:
    """Return the config file that a name means: the file itself or, for `configs/...` elsewhere,
    the package's own.

    The package's configs are the folder configs/ of a checkout, or its copy inside an installed
    package.
    """
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    package = Path(__file__).parents[1]
    return next(
        (folder / path for folder in (package, package.parent) if (folder / path).is_file()), path
    )


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a YAML config file."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"config: cannot read {path} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config: {path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise UserError(f"config: {path} holds no mapping of settings")
    return content


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with negative values joined to their option: `--radius -1/255` reads as
    two options else.
    """
    joined: list[str] = []
    for argument in arguments:
        after_option = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if after_option and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _chain(path: Path, seen: tuple[Path, ...]) -> list[Path]:
    """Return the included files, each before the one that includes it, and the file itself."""
    if path.resolve() in seen:
        raise UserError(
            f"include: {path} includes itself, by way of {', '.join(p.name for p in seen)}"
        )
    included = read_config(path).get("include") or []
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise UserError(f"include: {path} wants a list of file names, not {included!r}")
    seen = (*seen, path.resolve())
    return [p for name in included for p in _chain(path.parent / name, seen)] + [path]
