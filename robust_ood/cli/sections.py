"""Which of a parser's settings are sections, and what a config may write in place of one.

YAML has two ways to leave a setting out: not to write it, and to write nothing after its colon.
jsonargparse knows the first. Here the second comes to mean the same, wherever null is no value of
its own; and what stands where a section belongs is refused, which jsonargparse fails on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ActionSubCommands, ArgumentParser, Namespace  # type: ignore[attr-defined]

from robust_ood.cli.bounds import check_path
from robust_ood.cli.configs import read_config
from robust_ood.errors import UserError
from robust_ood.settings import alternatives
from robust_ood.texts import shown

_OF_A_CLASS = ("init_args", "dict_kwargs")
_SINGLE = (bool, float, int, str, list, tuple, dict, PurePath, type(None))
"""Types of values that are no classes with settings."""


class Sections:
    """The settings of a parser, as far as they are sections, classes or single values.

    Args:
        parser: of a command, of a sub-command, or of a class that a setting names.
    """

    def __init__(self, parser: Any) -> None:
        self.hints: dict[str, Any] = {}
        """The types of the settings, by dotted name."""
        self.sections: set[str] = set()
        """The dotted names of what has settings in it."""
        self.from_files: set[str] = set()
        """Classes that an option may name by a file of their settings."""
        self.config_option = ""
        """The option that reads configs."""
        self.commands: dict[str, ArgumentParser] = {}
        for action in parser._actions:
            if action.nargs == 0 or action.dest.endswith("help"):
                continue  # asks for something to be shown
            if isinstance(action, ActionSubCommands):
                self.commands = dict(action.choices)
            elif isinstance(action, ActionConfigFile):
                self.config_option = action.dest
            elif hasattr(action, "_typehint"):
                self.hints[action.dest] = action._typehint
                if getattr(action, "_enable_path", False):
                    self.from_files.add(action.dest)
            names = action.dest.split(".")
            for length in range(1, len(names)):
                self.sections.add(".".join(names[:length]))

    # Configs
    # ------------------------------------------------------------------------------------------

    def filled(self, settings: Mapping[str, Any] | Namespace) -> Any:
        """Return settings without those that are empty and so mean their default.

        Raises:
            UserError: something else than a mapping in place of a section, or of a class's
                settings.
        """
        if isinstance(settings, Namespace):
            return _namespace(self._filled(vars(settings), ""))
        if not isinstance(settings, Mapping):
            raise _no_mapping("init_args", settings)
        return self._filled(settings, "")

    def _filled(self, settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        filled = {}
        for name, value in settings.items():
            if not isinstance(name, str):
                raise UserError(
                    f"{prefix}{name}: expected the name of a setting, got {shown(name)}; "
                    "YAML reads on, off, yes, no and numbers as values unless they are quoted"
                )
            key = f"{prefix}{name}"
            if not self._means_default(key, value):
                filled[name] = self._read(key, value)
        return filled

    def _means_default(self, key: str, value: Any) -> bool:
        """Return whether a setting is empty, and null is no value of its own."""
        if value is not None:
            return False
        if key in self.sections or key in self.commands:
            return True
        hint = self.hints.get(key.removesuffix("+"), Any)
        return hint is not Any and type(None) not in alternatives(hint)

    def _read(self, key: str, value: Any) -> Any:
        if key == self.config_option and value is not None:
            raise UserError(f"{key}: not a setting of configs; they build on others by 'include'")
        if key in self.commands:
            return Sections(self.commands[key]).filled(_mapping(key, value))
        if key in self.sections:
            if isinstance(value, str) and value:
                value = read_config(Path(value), key)
            if isinstance(value, Namespace):
                return _namespace(self._filled(vars(value), f"{key}."))
            return self._filled(_mapping(key, value), f"{key}.")
        if isinstance(value, str) and self._is_path(key):
            check_path(key, value)
        if self._is_class(key) and isinstance(value, Mapping | Namespace):
            return _whole_class(key, value)
        return value

    def _is_class(self, key: str) -> bool:
        for kind in alternatives(self.hints.get(key, Any)):
            if isinstance(kind, type) and not issubclass(kind, _SINGLE):
                return True
        return False

    def _is_path(self, key: str) -> bool:
        kinds = alternatives(self.hints.get(key, Any))
        return any(isinstance(kind, type) and issubclass(kind, os.PathLike) for kind in kinds)

    # Options
    # ------------------------------------------------------------------------------------------

    def inlined(self, arguments: Sequence[str]) -> list[str]:
        """Return arguments in which `--SECTION FILE` has the file's settings in place of its name.

        jsonargparse would read whatever that file is, to its end.
        """
        inlined: list[str] = []
        option = ""
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if equals and name.startswith("--"):
                argument = f"{name}={self._file_settings(name[2:], value)}"
            else:
                argument = self._file_settings(option, argument)
            option = ""
            if argument.startswith("--"):
                option = argument[2:]
            inlined.append(argument)
        return inlined

    def _file_settings(self, option: str, value: str) -> str:
        """Return the settings in a file that an option names, as a text; other values as given."""
        if self._is_path(option):
            check_path(option, value)
        takes_settings = option in self.sections or option in self.from_files
        if not takes_settings or not os.path.exists(value) or os.path.isdir(value):
            return value
        settings = read_config(Path(value), option)
        return yaml.safe_dump(settings, default_flow_style=True, width=float("inf")).strip()


def _whole_class(key: str, value: Any) -> Any:
    """Return a class with its settings, without sections of it that are empty."""
    items = value
    if isinstance(value, Namespace):
        items = vars(value)
    kept = {}
    for name, part in items.items():
        if name in _OF_A_CLASS:
            if part is None:
                continue
            part = _mapping(f"{key}.{name}", part)
        kept[name] = part
    if isinstance(value, Namespace):
        return _namespace(kept)
    return kept


def _namespace(values: Mapping[str, Any]) -> Any:
    return Namespace(values)  # type: ignore[no-untyped-call]


def _mapping(key: str, value: Any) -> Any:
    if not isinstance(value, Mapping | Namespace):
        raise _no_mapping(key, value)
    return value


def _no_mapping(key: str, value: Any) -> UserError:
    return UserError(f"{key}: expected a mapping of settings, got {shown(value)}")
