"""Configs that build on others: `include: [../data/digits.yaml, ...]` at the top of a YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from robust_ood.cli.yaml_text import RefusedTextError, load_settings, load_yaml, read_text
from robust_ood.errors import UserError
from robust_ood.texts import shortened, shown

DEEPEST = 50
"""Files that include each other."""
MOST_FILES = 1_000
"""Files that one includes, also through others and repeatedly."""


def with_includes(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments in which each `-c FILE` follows the files that it includes.

    Included names are relative to the including file; a `configs/...` that is not there is looked
    for as after `-c`. Later files override earlier ones, and a file overrides what it includes. See
    `find_config` for where a FILE is looked for. `--include FILE` is another word for `-c FILE`.

    Raises:
        UserError: a missing or unreadable file, or files that include each other.
    """
    expanded: list[str] = []
    remaining = iter(_joined(arguments))
    for argument in remaining:
        option = _FILE_OPTION.fullmatch(argument)
        if option is None:
            expanded.append(argument)
            continue
        value = option["value"] or option["attached"] or next(remaining, None)
        names = [str(value)]
        if argument.startswith("--include"):
            names = _listed(value)
        elif not value:
            raise UserError(f"{argument}: expects a YAML file")
        for name in names:
            for path in included_files(find_config(Path(name))):
                expanded += ["-c", str(path)]
    return expanded


_FILE_OPTION = re.compile(r"(?:-c|--config|--include)(?:=(?P<value>.*))?|-c(?P<attached>[^=].*)")


def _listed(value: str | None) -> list[str]:
    """Return the files of `--include`, which takes one or, as in a config, a list."""
    names: Any = value
    if value is not None and value.startswith("["):
        try:
            names = load_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"include: {shown(value)} is no list ({first_line(error)})") from error
    if isinstance(names, str) and names:
        return [names]
    if not names:
        raise UserError("include: expects a value, a config file or a list of them")
    return _file_names("include", names)


def find_config(path: Path) -> Path:
    """Return the config file of a name: that file or, for a missing `configs/...`, the package's.

    The package's configs are the folder configs/ of a checkout, or its copy inside an installed
    package.
    """
    if path.parts[:1] != ("configs",) or os.path.exists(path):
        return path
    for folder in package_folders():
        if os.path.isfile(folder / path):
            return folder / path
    return path


def package_folders() -> tuple[Path, Path]:
    """Return the folders that may hold the package's configs/: installed, and a checkout's."""
    package = Path(__file__).parents[1]
    return package, package.parent


def read_config(path: Path, field: str = "config") -> dict[str, Any]:
    """Return the content of a YAML config file; a file without settings has none.

    Args:
        path: the file.
        field: what names it, for messages.
    """
    text = read_text(path, field)
    return settings_of(text, f"{field}: {path}")


def settings_of(text: str, source: str) -> dict[str, Any]:
    """Return the settings of a config's text.

    Args:
        text: the text.
        source: where it is from, for messages: "config: FILE".
    """
    try:
        content = load_settings(text)
    except RefusedTextError as error:
        raise UserError(f"{source} is not read ({first_line(error)})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not YAML ({first_line(error)})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected a mapping of settings, got {shown(content)}")
    return content


def first_line(error: yaml.YAMLError) -> str:
    """Return on one line what is wrong with a YAML text."""
    return shortened(str(error), 300)


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


def included_files(path: Path) -> list[Path]:
    """Return a config file, after the files that it includes, in the order in which they count.

    Raises: `UserError` for a missing or unreadable file, or files that include each other.
    """
    return _with_included(path, ())


def _with_included(path: Path, including: tuple[Path, ...]) -> list[Path]:
    """Return a config file, after the files that it includes.

    Args:
        path: the file.
        including: the files that lead to it, each included by the one before.
    """
    names = read_config(path).get("include")
    if path.resolve() in including:
        through = ", ".join(file.name for file in including)
        raise UserError(f"include: {path} includes itself, through {through}")
    if len(including) > DEEPEST:
        raise UserError(f"include: {path} is more than {DEEPEST} files deep")
    if names is None:
        names = []
    files: list[Path] = []
    for name in _file_names(f"include: {path}", names):
        included = _find_included(path, Path(name))
        files += _with_included(included, (*including, path.resolve()))
        if len(files) > MOST_FILES:
            raise UserError(f"include: {path} includes more than {MOST_FILES} files")
    return [*files, path]


def _file_names(field: str, names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{field}: expected a list of file names, got {shown(names)}")
    return names


def _find_included(including: Path, name: Path) -> Path:
    """Return the file that a config includes: beside it or, for `configs/...`, as after `-c`."""
    beside = including.parent / name
    if os.path.exists(beside) or name.parts[:1] != ("configs",):
        return beside
    return find_config(name)
