"""One line out of whatever went wrong: the innermost cause, under the name that the user wrote.

jsonargparse says where a setting stands and what was wanted in a nested text, level by level; the
same levels are the exception's chain of causes, which is what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

from robust_ood.errors import UserError, unknown_name, unknown_setting

LONGEST_VALUE = 80
_WORDS = {
    "bool": "true or false",
    "dict": "settings by name",
    "float": "a number",
    "Fraction": "a fraction such as 8/255",
    "int": "a whole number",
    "list": "a list",
    "NoneType": "null",
    "Path": "a path",
    "str": "a text",
}
_NEIGHBOURS = {
    "net": "robust_ood.models",
    "module": "robust_ood.models",
    "model": "robust_ood.training",
    "region": "robust_ood",
}
"""Where the known names of a class are, by the setting that it is for."""
_ELSEWHERE = {
    **dict.fromkeys(
        ("model", "trainer", "checkpoints", "guards", "averaging", "robust_validation"), "train.py"
    ),
    **dict.fromkeys(("detectors", "attacks", "checkpoint", "models", "intervals"), "evaluate.py"),
}
"""Whose setting it is that another command does not know."""


def one_line(message: str) -> str:
    """Return a message without line breaks and runs of blanks."""
    return " ".join(message.split()) or "unknown error"


def explain(error: BaseException, known: list[str], commands: Iterable[str] = ()) -> UserError:
    """Return the user's mistake that made a parser or a constructor fail.

    Args:
        error: what was raised, with its chain of causes.
        known: the dotted names of the parser's settings, to suggest the nearest.
        commands: the parser's sub-commands, which the parser writes before what it misses.
    """
    where = _Place()
    for cause in causes(error):
        if isinstance(cause, UserError):
            return cause
        where.enter(str(cause))
    return where.mistake(known, set(commands))


def option_names(parser: ArgumentParser) -> list[str]:
    """Return the dotted names of a parser's settings."""
    options = [option for action in parser._actions for option in action.option_strings]
    return sorted(
        {
            option[2:].rstrip("+")
            for option in options
            if option.startswith("--") and not re.search("help|print_", option)
        }
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


@contextmanager
def user_errors(settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn what constructors raise, wrapped by the parser, into the user's mistake that it is;
    leave bugs as they are.

    Args:
        settings: all settings by dotted name.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        own = next((cause for cause in causes(error) if isinstance(cause, UserError)), None)
        if own is None:
            raise
        raise in_place(own, settings) from error


def in_place(error: UserError, settings: Mapping[str, Any]) -> UserError:
    """Return a constructor's error with its field's full dotted name, where the settings have just
    one such value.

    Args:
        error: "steps: 0 is not ...", from a constructor that does not know where it is configured.
        settings: all settings by dotted name.
    """
    name, colon, rest = str(error).partition(":")
    last = name.split(" ")[-1]
    if colon and "." in last:
        return UserError(f"{_whole_name(last, settings)}:{rest}")
    found = [
        _as_written(key)
        for key, value in settings.items()
        if key.split(".")[-1] == last
        and key != last
        and (str(value) in rest or repr(value) in rest)
    ]
    return UserError(f"{min(found, key=len)}:{rest}") if colon and found else error


def _whole_name(name: str, settings: Mapping[str, Any]) -> str:
    """Return a name such as `inlier_attack.steps` with the prefix that its first part has."""
    first = name.partition(".")[0]
    if any(key.startswith(f"{first}.") for key in settings):
        return name  # whole already
    for key in settings:
        prefix, found, _ = f"{_as_written(key)}.".partition(f".{first}.")
        if found:
            return f"{prefix}.{name}"
    return name


def _as_written(key: str) -> str:
    """Return a setting's name as the command line has it."""
    return ".".join(part for part in key.split(".") if part != "init_args")


@dataclass
class _Place:
    """Where in the settings the chain of causes has led, and what was wanted there."""

    keys: list[str] = field(default_factory=list)
    value: str = ""
    wanted: str = ""
    kind: str = ""
    last: str = ""

    def enter(self, message: str) -> None:
        """Go one cause further in."""
        if message == self.last:
            return
        self.last = message
        if found := re.match(r'Parser key "([^"]+)":', message):
            self.keys.append(found[1])
            self.value = self.wanted = ""
        elif found := re.match(r"Problem with given class_path '([^']+)'", message):
            self.kind = found[1]
        elif "Does not validate against any of the Union subtypes" in message:
            subtypes = re.search(r"Subtypes: \[(.*)\]$", message, re.MULTILINE)
            self.wanted = _wanted(subtypes[1]) if subtypes else ""
            if own := re.search(r"Not of type \w+: [^:]+: (.+)", message):
                self.wanted = "=" + own[1]  # a type of ours has said it itself
            self._take_value(re.search(r"Given value: (.*)", message, re.DOTALL))
        elif found := re.match(r"Expected a (.+?)\. Got value: (.*)", message, re.DOTALL):
            self.wanted = self.wanted or _wanted(found[1])
            self._take_value(re.match(r"Expected a .+?\. Got value: (.*)", message, re.DOTALL))

    def mistake(self, known: list[str], commands: set[str]) -> UserError:
        """Return the error for where the chain ended."""
        message, path = self.last, ".".join(self.keys)
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            return self._unknown(
                found[1].lstrip("-").partition("=")[0], known, stray=not found[1].startswith("-")
            )
        if found := re.match(r"Group '([^']+)' does not accept option '([^']+)'", message):
            return self._unknown(f"{found[1]}.{found[2]}", known)
        if found := re.match(
            r"(?:Subcommand '\w+' does not accept option|Option) '([^']+)'", message
        ):
            return self._unknown(found[1], known)
        if found := re.search(
            r"has no attribute '(\w+)'|dot import path string: (\S+)|No module named '(\S+)'",
            message,
        ):
            return self._unknown_class(next(filter(None, found.groups())), message)
        if found := re.match(r"argument -*([^\s/:]+)\S*: expected", message):
            return UserError(f"{found[1]}: a value is wanted after it")
        if found := re.match(r"the following arguments are required: (.*)", message):
            names = ", ".join(_without_command(name, commands) for name in found[1].split(", "))
            how = "; give it in a config (-c FILE) or as an option" if "config" in known else ""
            return UserError(f"{names}: not given, and this command needs it{how}")
        if "subcommand" in message:
            given, *known_commands = re.findall(r"'([^']*)'", message) or [
                "",
                *re.findall(r"[{,](\w+)", message),
            ]
            if not given:
                return UserError(f"command: not given; {', '.join(known_commands)} are known")
            return unknown_name("command", given, known_commands)
        if self.wanted.startswith("="):
            return UserError(f"{path}: {self.wanted[1:]}")
        if self.wanted:
            return UserError(f"{path}: {self.value!r} is not {self.wanted}")
        return UserError(f"{path}: {one_line(message)}" if path else one_line(message))

    def _take_value(self, found: re.Match[str] | None) -> None:
        if found:
            text = one_line(
                re.sub(r"^NestedArg\(key='.*', val=(.*)\)$", r"\1", found[1], flags=re.DOTALL)
            )
            self.value = text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."

    def _unknown(self, name: str, known: list[str], *, stray: bool = False) -> UserError:
        if stray:
            return UserError(
                f"argument: {name!r} belongs to no option; options are written --NAME VALUE"
            )
        if self.kind:
            prefix = ".".join([*self.keys, *name.split(".")[:-1]])
            inside = settings_of(self.kind, name.split(".")[:-1])
            for_evaluations = _evaluation_only(f"{prefix}.{name.split('.')[-1]}", inside)
            if for_evaluations is not None:
                return for_evaluations
            return unknown_setting(
                f"{prefix}.{name.split('.')[-1]}", [f"{prefix}.{other}" for other in inside]
            )
        first = name.split(".")[0]
        if first in _ELSEWHERE and not any(other.split(".")[0] == first for other in known):
            return UserError(
                f"{first}: a setting of {_ELSEWHERE[first]}; is this config, or option, meant for that?"
            )
        return unknown_setting(name, known)

    def _unknown_class(self, name: str, message: str) -> UserError:
        path = ".".join(self.keys)
        if "." in self.kind and not self.kind.startswith("robust_ood."):
            return UserError(
                f"{path}: cannot import {self.kind!r} ({one_line(message)}); "
                "its module has to be in the working folder, installed, or on PYTHONPATH"
            )
        module = import_module(_NEIGHBOURS.get(path.split(".")[-1], "robust_ood"))
        classes = [other for other in module.__all__ if isinstance(getattr(module, other), type)]
        if module.__name__ != "robust_ood":
            classes = [other for other in classes if issubclass(getattr(module, other), nn.Module)]
        return unknown_name(path, name, classes)


def _evaluation_only(field: str, known: list[str]) -> UserError | None:
    """Return the error for an evaluation's setting in an attack of training; None for others."""
    # Not with the other imports: it loads torch, and a command that succeeds does without.
    from robust_ood.attacks.in_loop import BUDGET_SETTINGS, evaluation_only, is_evaluation_setting

    if tuple(known) == BUDGET_SETTINGS and is_evaluation_setting(field.rpartition(".")[2]):
        return UserError(evaluation_only(field))
    return None


def _without_command(name: str, commands: set[str]) -> str:
    first, _, rest = name.partition(".")
    return rest if first in commands and rest else name


def settings_of(class_path: str, inside: list[str]) -> list[str]:
    """Return the names of a class's settings, or of those of one of its settings, reached by
    name.
    """
    from inspect import signature
    from typing import get_args, get_type_hints

    module, _, name = class_path.rpartition(".")
    kind = getattr(import_module(module), name)
    for step in inside:
        hint = get_type_hints(kind.__init__).get(step)
        kind = next(
            (
                part
                for part in (*get_args(hint), hint)
                if isinstance(part, type) and part is not type(None)
            ),
            None,
        )
        if kind is None:
            return []
    return list(signature(kind).parameters)


def _wanted(types: str) -> str:
    """Say jsonargparse's list of accepted types in a user's words."""
    choices = [
        choice.strip().strip("'\"")
        for found in re.findall(r"Literal\[([^\]]*)\]", types)
        for choice in found.split(",")
    ]
    names = re.findall(
        r"<class '(?:[\w.]*\.)?(\w+)'>|(?:typing\.)?(list)\[",
        re.sub(r"Literal\[[^\]]*\]", "", types),
    )
    words = [
        _WORDS.get(name, f"a {name}") for name in (plain or generic for plain, generic in names)
    ]
    if choices:
        words.insert(0, "one of " + ", ".join(dict.fromkeys(choices)))
    return " or ".join(dict.fromkeys(words)) or types
