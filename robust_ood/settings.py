"""How configs, command lines and Python write a part: `pgd`, or `{name: pgd, steps: 20}`.

An attack, a detector, an optimiser: each is a name with settings. The name is a registered one, or
the import path of a user's own class or function. `read_part` reads that form, and `configured`
checks the settings against the signature of what they configure.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from robust_ood.errors import UserError, nearest, unknown_name
from robust_ood.regions import Fraction

T = TypeVar("T")


class UnknownSettingError(UserError):
    """A setting that does not exist, with those that do.

    Args:
        field: what it was given to; empty where that is for the caller to say.
        name: its name.
        known: the settings that exist.
    """

    def __init__(self, field: str, name: str, known: Sequence[str]) -> None:
        near = nearest(name, known)
        hint = f"did you mean {near!r}? " if near else ""
        super().__init__(
            f"{_at(field, name)}: no such setting; {hint}known: {', '.join(known) or 'none'}"
        )
        self.name, self.known = name, tuple(known)


PartSpec = str | Mapping[str, Any]
"""A part as a config writes it: a name, or a mapping with `name` (or `class_path`) and settings."""


@dataclass(frozen=True)
class Part:
    """A part as it was written.

    Args:
        name: a registered name, or the import path of a class or function, which has a dot.
        settings: its settings, by name.
        label: what tables call it; None where the config does not say.
    """

    name: str
    settings: Mapping[str, Any]
    label: str | None = None

    def maker(self, field: str, registry: Mapping[str, Callable[..., T]]) -> Callable[..., T]:
        """Return what makes the part: a registered maker, or the class at an import path.

        Raises: `UserError` naming the field for an unknown name, with the nearest known one, and
            for a path that cannot be imported.
        """
        if self.name in registry:
            return registry[self.name]
        if "." not in self.name:
            raise unknown_name(field, self.name, registry)
        found: Callable[..., T] = import_path(field, self.name)
        return found


def read_part(field: str, given: PartSpec) -> Part:
    """Return a part as a config writes it.

    Args:
        field: the config field, for messages.
        given: `pgd`; `{name: pgd, steps: 20, label: mine}`; `{name: mine.MyAttack, steps: 20}`; or
            the longer form of a class path, `{class_path: mine.MyAttack, init_args: {...}}`.

    Raises:
        UserError: neither a text nor a mapping, a mapping without a name, or `init_args` that are
            no mapping.
    """
    if isinstance(given, str):
        return Part(given, {})
    if not isinstance(given, Mapping):
        raise UserError(f"{field}: {given!r} is not a name, or a mapping with 'name' and settings")
    settings = dict(given)
    label = settings.pop("label", None)
    if "class_path" in settings and "name" not in settings:
        name = settings.pop("class_path")
        inside = settings.pop("init_args", None) or {}
        if not isinstance(inside, Mapping):
            raise UserError(f"{field}.init_args: {inside!r} is not a mapping of settings")
        settings |= inside
    elif "name" in settings:
        name = settings.pop("name")
    else:
        raise UserError(f"{field}: {dict(given)} has no 'name'")
    if not isinstance(name, str):
        raise UserError(f"{field}.name: {name!r} is not a text")
    return Part(name, settings, None if label is None else str(label))


def import_path(field: str, path: str) -> Any:
    """Return the class or function at an import path such as `my_module.MyDetector`.

    Raises: `UserError` naming the field where it cannot be imported or is not callable.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{field}: cannot import {path!r} ({error}); its module has to be in the working "
            "folder, installed, or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"{field}: {path!r} is no class or function")
    return found


def configured(
    field: str, make: Callable[..., T], *arguments: Any, settings: Mapping[str, Any]
) -> T:
    """Return `make(*arguments, **settings)`, with settings that a user wrote in a config.

    Args:
        field: what the settings belong to, for messages: `detectors.msp`; empty inside another
            maker, which says it.
        make: a class or function, or a `partial` of one, whose parameters have type hints. What it
            takes as `**settings` it hands on by `configured("", ...)`, so that those are checked,
            too.
        arguments: what comes first, and is not the user's.
        settings: what the user wrote, by name.

    Raises:
        UserError: a setting that does not exist (with the nearest that does), is missing, or has a
            value of another type; and the maker's own `UserError`, prefixed with the field.
    """
    known = _parameters(make, len(arguments))
    read = {}
    for name, value in settings.items():
        if name in known:
            read[name] = _read(_at(field, name), value, known[name].hint)
        elif _passes_on(make) and name not in inspect.signature(make).parameters:
            read[name] = value
        else:
            raise UnknownSettingError(field, name, list(known))
    for name, parameter in known.items():
        if parameter.required and name not in settings:
            raise UserError(f"{_at(field, name)}: not given, and it has no default")
    try:
        return make(*arguments, **read)
    except UnknownSettingError as error:  # of a part: its settings are this maker's too
        raise UnknownSettingError(
            field, error.name, list(dict.fromkeys([*error.known, *known]))
        ) from error
    except UserError as error:
        raise UserError(_at(field, str(error))) from error
    except TypeError as error:
        # A maker that passes settings on: what they reach has the last word.
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found is None:
            raise
        raise UnknownSettingError(field, found[1], list(known)) from error


def _at(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


class _Parameter(NamedTuple):
    hint: Any
    required: bool


def _parameters(make: Callable[..., Any], given: int) -> dict[str, _Parameter]:
    """Return the parameters by name that a config may set.

    Not those given in order; and in place of one that a `partial` fixed to a class or function, a
    part, the part's own.
    """
    hints = _type_hints(make)
    known: dict[str, _Parameter] = {}
    for parameter in list(inspect.signature(make).parameters.values())[given:]:
        if _is_part(parameter):
            known |= _parameters(parameter.default, given)
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            required = parameter.default is parameter.empty
            known[parameter.name] = _Parameter(hints.get(parameter.name, Any), required)
    # What a `partial` has set for a part behind `**others` is not in its signature.
    fixed = make.keywords if isinstance(make, partial) else {}
    return {
        name: parameter._replace(required=parameter.required and name not in fixed)
        for name, parameter in known.items()
    }


def _type_hints(make: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(_hinted(make))
    except NameError:
        # Of a library that imports some names for type checkers alone, as torch's schedulers do.
        return {}


def _is_part(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty and callable(parameter.default)


def _hinted(make: Callable[..., Any]) -> Any:
    """Return what carries the type hints of a maker's parameters."""
    while isinstance(make, partial):
        make = make.func
    return make.__init__ if isinstance(make, type) else make  # type: ignore[misc]


def _passes_on(make: Callable[..., Any]) -> bool:
    """Return whether a maker hands settings that it does not know to something unseen."""
    parameters = inspect.signature(make).parameters.values()
    return any(p.kind is p.VAR_KEYWORD for p in parameters) and not any(map(_is_part, parameters))


def _read(field: str, value: Any, hint: Any) -> Any:
    """Return a config's value for a parameter of that type; a number may be written as a
    fraction.
    """
    if _is(value, hint):
        return value
    if isinstance(value, str) and _is(0.5, hint):
        return float(Fraction(value, field))
    raise UserError(f"{field}: {value!r} is not {_in_words(hint)}")


def _is(value: Any, hint: Any) -> bool:
    """Return whether a value read from a config has a type."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_is(value, part) for part in inside)
    if origin is Literal:
        return value in inside
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(
            _is(item, part) for item in value for part in inside[:1]
        )
    if hint is float:
        # Neither infinite nor NaN: JSON, which holds the results, has no such numbers.
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
        )
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


_WORDS = {
    bool: "true or false",
    float: "a finite number",
    Fraction: "a fraction such as 8/255",
    int: "a whole number",
    str: "a text",
    type(None): "null",
}


def _in_words(hint: Any) -> str:
    """Say a type in a user's words."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if {float, str} <= set(inside):
            inside = (float, Fraction)  # a text that stands for a number is one
        return " or ".join(dict.fromkeys(_in_words(part) for part in inside))
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    if origin in (list, tuple, Sequence):
        return f"a list of which each is {_in_words(inside[0])}" if inside else "a list"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")
