"""Configs that build on others: `include: [../data/digits.yaml, ...]` at the top of a YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from robust_ood.errors import UserError
from robust_ood.texts import one_line


def with_includes(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which each `-c FILE` follows the files that it includes.

    Included names are relative to the including file; a `configs/...` that is not there is looked
    for as after `-c`. Later files override earlier ones, and a file overrides what it includes. See
    `find_config` for where a FILE is looked for.

    Raises:
        UserError: a missing or unreadable file, or files that include each other.
    """
    expanded: list[str] = []
    remaining = iter(_joined(arguments))
    for argument in remaining:
        option = re.fullmatch(r"(?:-c|--config)(?:=(.*))?|-c([^=].*)", argument)
        if option is None:
            expanded.append(argument)
            continue
        name = option[1] or option[2] or next(remaining, None)
        if name is None:
            raise UserError(f"{argument}: expects a YAML file")
        for path in _with_included(find_config(Path(name)), ()):
            expanded += ["-c", str(path)]
    return expanded


def find_config(path: Path) -> Path:
    """Return the config file of a name: that file or, for a missing `configs/...`, the package's.

    The package's configs are the folder configs/ of a checkout, or its copy inside an installed
    package.
    """
    if path.exists() or path.parts[:1] != ("configs",):
        return path
    package = Path(__file__).parents[1]
    for folder in (package, package.parent):
        if (folder / path).is_file():
            return folder / path
    return path


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a YAML config file."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"config: cannot read {path} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config: {path} is not YAML ({one_line(str(error))})") from error
    if not isinstance(content, dict):
        raise UserError(
            f"config: {path}: expected a mapping of settings, got a {type(content).__name__}"
        )
    return content


def _joined(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with negative values joined to their option by `=`.

    Otherwise the parser would read `--radius -1/255` as two options.
    """
    joined: list[str] = []
    for argument in arguments:
        after_option = bool(joined) and joined[-1].startswith("--") and "=" not in joined[-1]
        if after_option and re.match(r"-[\d.]", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _with_included(path: Path, including: tuple[Path, ...]) -> list[Path]:
    """Return a config file, after the files that it includes.

    Args:
        path: the file.
        including: the files that lead to it, each included by the one before.
    """
    if path.resolve() in including:
        through = ", ".join(file.name for file in including)
        raise UserError(f"include: {path} includes itself, through {through}")
    names = read_config(path).get("include") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"include: {path}: expected a list of file names, got {names!r}")
    files = []
    for name in names:
        files += _with_included(_find_included(path, Path(name)), (*including, path.resolve()))
    return [*files, path]


def _find_included(including: Path, name: Path) -> Path:
    """Return the file that a config includes: beside it or, for `configs/...`, as after `-c`."""
    beside = including.parent / name
    if beside.exists() or name.parts[:1] != ("configs",):
        return beside
    return find_config(name)
