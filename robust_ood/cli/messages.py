"""One line out of whatever went wrong: the innermost cause, under the name that the user wrote.

jsonargparse raises one exception from another, level by level: the command's parser, the setting,
the class that the setting names, that class's parser, its setting, ... This module follows that
chain. What a setting expects comes from its type hint, which the parser has; only what no
exception holds as data is read from jsonargparse's English, by the expressions in `WORDING`.
"""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from jsonargparse import ActionSubCommands, ArgumentParser

from robust_ood.cli.parsing import ParserError
from robust_ood.errors import UserError, unknown_name, unknown_setting
from robust_ood.settings import alternatives, expected, import_path
from robust_ood.texts import one_line, shortened, shown

WORDING = {
    "setting": r'^Parser key "([^"]+)"',
    "class path": r"^Problem with given class_path '([^']+)'",
    "value": r"^.*\b(?:Got|Given) value: (.*?)(?:\nSubclass types expect one of:.*)?$",
    "nested value": r"^NestedArg\(key='.*?', val='?(.*?)'?\)$",
    "class without a path": r"^Expected a dot import path string: (\S+)$",
    "unknown setting": r"^(?:Group '([^']+)'|Subcommand '\w+'|Option)(?: .+ option)? '([^']+)'",
    "unknown option": r"^unrecognized arguments: (\S+)",
    "missing settings": r"^the following arguments are required: (.*)$",
}
"""What only jsonargparse's texts say. tests/unit/test_messages.py has it raise each of them."""

_SETTINGS_OF = {
    "train.py": (
        "model",
        "trainer",
        "checkpoints",
        "guards",
        "averaging",
        "hard_outliers",
        "robust_validation",
    ),
    "evaluate.py": ("detectors", "attacks", "checkpoint", "models", "intervals"),
}
"""Settings of one command that another does not know: a config meant for the former."""


def explain(error: BaseException) -> UserError:
    """Return the user's mistake that made a parser or a constructor fail.

    Args:
        error: what was raised, with its chain of causes.
    """
    mistake = _Mistake()
    for cause in causes(error):
        mistake.follow(cause)
    return mistake.describe()


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, outermost first, each once.

    A chain may be a circle: a library's thread keeps an error, and raises it again each time.
    """
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        if link.__cause__ is not None or link.__suppress_context__:
            link = link.__cause__
        else:
            link = link.__context__


@contextmanager
def user_errors(settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn what constructors raise, wrapped by the parser, into the user's mistake that it is.

    Other exceptions are bugs, and pass.

    Args:
        settings: all settings by dotted name.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        for cause in causes(error):
            if isinstance(cause, UserError):
                raise with_full_name(cause, settings) from error
        raise


def with_full_name(error: UserError, settings: Mapping[str, Any]) -> UserError:
    """Return a constructor's error with the full dotted name of its field.

    That is the shortest name of a setting that ends so and has the value that the message repeats;
    without such a setting, the error stays as it is.

    Args:
        error: "steps: 0 is not ...", from a constructor that does not know where it is configured.
        settings: all settings by dotted name.
    """
    where, colon, rest = str(error).partition(":")
    name = where.split(" ")[-1]
    if colon and "." in name:
        return UserError(f"{_whole_name(name, settings)}:{rest}")
    names = []
    for key, value in settings.items():
        if key.endswith(f".{name}") and (str(value) in rest or repr(value) in rest):
            names.append(as_written(key))
    if not colon or not names:
        return error
    return UserError(f"{min(names, key=len)}:{rest}")


def _whole_name(name: str, settings: Mapping[str, Any]) -> str:
    """Return a name such as `inlier_attack.steps` with the prefix that its first part has."""
    first = name.partition(".")[0]
    if any(key.startswith(f"{first}.") for key in settings):
        return name  # whole already
    for key in settings:
        prefix, dotted, _ = f"{as_written(key)}.".partition(f".{first}.")
        if dotted:
            return f"{prefix}.{name}"
    return name


def as_written(key: str) -> str:
    """Return a setting's name as the command line has it."""
    return key.replace(".init_args", "")


@dataclass
class _Mistake:
    """Where in the settings a chain of causes leads, and how it ends."""

    keys: list[str] = field(default_factory=list)
    parser: ArgumentParser | None = None
    class_path: str = ""
    value: str | None = None
    hint: Any = Any
    cause: BaseException = field(default_factory=Exception)

    @property
    def path(self) -> str:
        """The dotted name of the setting."""
        return ".".join(self.keys)

    def follow(self, cause: BaseException) -> None:
        """Take one cause further in."""
        self.cause = cause
        if isinstance(cause, ParserError):  # its text repeats that of its cause
            self.parser = _chosen_parser(cause.parser)
            return
        text = str(cause)
        key = read("setting", text)
        if key is not None:
            self.keys.append(key)
            self.hint = _type_hint(self.parser, key)
            self.value = None
            return
        self.class_path = read("class path", text) or self.class_path
        if self.value is None:
            self.value = read("value", text)

    def describe(self) -> UserError:
        """Return the error for where the chain ended."""
        for description in (
            self._own_message,
            self._unknown_command,
            self._unknown_setting,
            self._option_without_value,
            self._missing_settings,
            self._unknown_class,
            self._wrong_type,
        ):
            error = description()
            if error is not None:
                return error
        message = one_line(str(self.cause)) or type(self.cause).__name__
        if self.path:
            message = f"{self.path}: {message}"
        return UserError(message)

    def _own_message(self) -> UserError | None:
        if not isinstance(self.cause, UserError):
            return None
        if not self.path:
            return self.cause
        # A type of ours, which does not know for which setting it was called.
        return UserError(f"{self.path}:{str(self.cause).partition(':')[2]}")

    def _unknown_command(self) -> UserError | None:
        commands = _commands(self.parser)
        if not commands or not isinstance(self.cause, ArgumentError | KeyError):
            return None
        chosen = re.search(r"'([^']*)'", str(self.cause))
        if isinstance(self.cause, KeyError) or chosen is None:
            return UserError(f"command: not given; known: {', '.join(commands)}")
        return unknown_name("command", chosen[1], commands)

    def _unknown_setting(self) -> UserError | None:
        name = read("unknown setting", str(self.cause))
        option = read("unknown option", str(self.cause))
        if isinstance(self.cause, ParserError) and option is not None:
            if not option.startswith("-"):
                return UserError(
                    f"argument: {option!r} does not follow an option; write options as --NAME VALUE"
                )
            name = option.lstrip("-").partition("=")[0]
        elif not isinstance(self.cause, KeyError) or name is None:
            return None
        settings = _settings(self.parser)
        if not self.keys:
            error = _of_another_command(name.partition(".")[0], settings)
            if error is not None:
                return error
        prefix = ""
        if self.keys:
            prefix = f"{self.path}."
        for_evaluations = _evaluation_only(prefix + name, settings)
        if for_evaluations is not None:
            return for_evaluations
        return unknown_setting(prefix + name, [prefix + setting for setting in settings])

    def _option_without_value(self) -> UserError | None:
        if not isinstance(self.cause, ArgumentError) or self.cause.argument_name is None:
            return None
        name = self.cause.argument_name.partition("/")[0].lstrip("-")
        return UserError(f"{name}: expects a value")

    def _missing_settings(self) -> UserError | None:
        missing = read("missing settings", str(self.cause))
        if missing is None:
            return None
        names = missing
        command = getattr(self.parser, "subcommand", "")
        if command:
            names = missing.replace(f"{command}.", "")
        advice = ""
        if "config" in _settings(self.parser):
            advice = "; give it in a config (-c FILE) or as an option"
        return UserError(f"{names}: not given, and this command needs it{advice}")

    def _unknown_class(self) -> UserError | None:
        class_path = read("class without a path", str(self.cause))
        if class_path is None:
            if not isinstance(self.cause, ImportError | AttributeError):
                return None
            class_path = self.class_path
        if "." in class_path and not class_path.startswith("robust_ood."):
            try:
                import_path(self.path, class_path)
            except UserError as error:
                return error
            return None
        package, classes = _classes_for(self.hint)
        if not classes:
            return UserError(
                f"{self.path}: {shown(class_path)} is not known; expected the import path of a "
                "class or, where that is offered, one of its names"
            )
        return unknown_name(self.path, class_path.removeprefix(f"{package}."), classes)

    def _wrong_type(self) -> UserError | None:
        if self.value is None or self.hint is Any:
            return None
        value = read("nested value", self.value) or self.value
        return UserError(f"{self.path}: expected {expected(self.hint)}, got {shortened(value)!r}")


def _evaluation_only(field: str, settings: Iterable[str]) -> UserError | None:
    """Return the error for an evaluation's setting in an attack of training; None for others."""
    # Not with the other imports: it loads torch, and a command that succeeds does without.
    from robust_ood.attacks.in_loop import BUDGET_SETTINGS, evaluation_only, is_evaluation_setting

    if set(settings) == set(BUDGET_SETTINGS) and is_evaluation_setting(field.rpartition(".")[2]):
        return UserError(evaluation_only(field))
    return None


def read(wording: str, text: str) -> str | None:
    """Return what a text of jsonargparse says, or None where it says no such thing.

    Args:
        wording: a key of `WORDING`.
        text: the text. Where several groups match, they are joined by dots.
    """
    match = re.match(WORDING[wording], text, re.DOTALL)
    if match is None:
        return None
    return ".".join(group for group in match.groups() if group is not None)


def _actions(parser: ArgumentParser | None) -> Iterable[Any]:
    if parser is None:
        return ()
    actions: Iterable[Any] = parser._actions
    return actions


def _commands(parser: ArgumentParser | None) -> Mapping[str, ArgumentParser]:
    """Return the parsers of a parser's sub-commands, by name."""
    for action in _actions(parser):
        if isinstance(action, ActionSubCommands):
            commands: Mapping[str, ArgumentParser] = action.choices
            return commands
    return {}


def _chosen_parser(parser: ArgumentParser) -> ArgumentParser:
    """Return the parser of the sub-command that was called, or the parser where there is none."""
    commands = _commands(parser)
    for argument in getattr(parser, "args", None) or ():
        if argument in commands:
            return commands[argument]
    return parser


def _settings(parser: ArgumentParser | None) -> list[str]:
    """Return the dotted names of a parser's settings."""
    names = set()
    for action in _actions(parser):
        for option in action.option_strings:
            if option.startswith("--") and not re.search("help|print_", option):
                names.add(option[2:].rstrip("+"))
    return sorted(names)


def _of_another_command(group: str, settings: list[str]) -> UserError | None:
    """Return the error for a setting, or group of them, that belongs to another command."""
    if any(setting.partition(".")[0] == group for setting in settings):
        return None
    for command, groups in _SETTINGS_OF.items():
        if group in groups:
            return UserError(
                f"{group}: a setting of {command}, which this command does not know; what both "
                "take, such as `data`, goes into a config of its own"
            )
    return None


def _type_hint(parser: ArgumentParser | None, key: str) -> Any:
    """Return the type hint of a parser's setting."""
    for action in _actions(parser):
        if action.dest == key:
            return getattr(action, "_typehint", Any)
    return Any


def _classes_for(hint: Any) -> tuple[str, list[str]]:
    """Return the package of ours that has the classes for a setting, and their names."""
    base = alternatives(hint)[0]
    if not isinstance(base, type) or not base.__module__.startswith(("robust_ood.", "torch.nn.")):
        return "", []
    package = "robust_ood.models"
    if base.__module__.startswith("robust_ood."):
        package = ".".join(base.__module__.split(".")[:2])
    if not hasattr(import_module(package), "__all__"):  # a module such as robust_ood.regions
        package = "robust_ood"
    public = import_module(package)
    classes = []
    for name in public.__all__:
        member = getattr(public, name)
        if isinstance(member, type) and issubclass(member, base):
            classes.append(name)
    return package, classes
