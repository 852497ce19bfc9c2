"""How configs, command lines and Python write a part: `pgd`, or `{name: pgd, steps: 20}`.

An attack, a detector, an optimiser: each is a name with settings. The name is a registered one, or
the import path of a user's own class or function. `read_part` reads that form, and `configured`
checks the settings against the signature of what they configure.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from robust_ood.errors import UserError, nearest, unknown_name
from robust_ood.regions import Fraction
from robust_ood.texts import shown

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
        hint = ""
        if near:
            hint = f"did you mean {near!r}? "
        listed = ", ".join(known) or "none"
        super().__init__(f"{_dotted(field, name)}: no such setting; {hint}known: {listed}")
        self.name = name
        self.known = tuple(known)


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
        maker: Callable[..., T] = import_path(field, self.name)
        return maker


def read_part(field: str, spec: PartSpec) -> Part:
    """Return a part as a config writes it.

    Args:
        field: the config field, for messages.
        spec: `pgd`; `{name: pgd, steps: 20, label: mine}`; `{name: mine.MyAttack, steps: 20}`; or
            the longer form of a class path, `{class_path: mine.MyAttack, init_args: {...}}`.

    Raises:
        UserError: neither a string nor a mapping, a mapping without a name, or `init_args` that
            are no mapping.
    """
    if isinstance(spec, str):
        return Part(spec, {})
    if isinstance(spec, Namespace):  # what jsonargparse makes of a class path inside a mapping
        spec = spec.as_dict()
    if not isinstance(spec, Mapping):
        raise UserError(
            f"{field}: expected a name, or a mapping with 'name' and settings, got {shown(spec)}"
        )
    settings = dict(spec)
    label = settings.pop("label", None)
    if "class_path" in settings and "name" not in settings:
        name = settings.pop("class_path")
        init_args = settings.pop("init_args", None) or {}
        if not isinstance(init_args, Mapping):
            raise UserError(
                f"{field}.init_args: expected a mapping of settings, got {shown(init_args)}"
            )
        settings |= init_args
    elif "name" in settings:
        name = settings.pop("name")
    else:
        raise UserError(f"{field}: {shown(dict(spec))} has no 'name'")
    if not isinstance(name, str):
        raise UserError(f"{field}.name: expected a string, got {shown(name)}")
    if label is not None:
        if not isinstance(label, str | int | float):
            raise UserError(f"{field}.label: expected a string, got {shown(label)}")
        label = str(label)
    return Part(name, settings, label)


def import_path(field: str, path: str) -> Any:
    """Return the class or function at an import path such as `my_module.MyDetector`.

    Raises: `UserError` naming the field where it cannot be imported or is not callable.
    """
    module, _, name = path.rpartition(".")
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{field}: cannot import {path!r} ({error}); its module must be in the working "
            "folder, installed, or on PYTHONPATH"
        ) from error
    if not callable(target):
        raise UserError(f"{field}: {path!r} is not a class or function")
    return target


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
    values = _read_settings(field, make, len(arguments), settings)
    try:
        return make(*arguments, **values)
    except UnknownSettingError as error:  # of a part: its settings are this maker's too
        accepted = [*error.known, *_parameters(make, len(arguments))]
        raise UnknownSettingError(field, error.name, list(dict.fromkeys(accepted))) from error
    except UserError as error:
        raise UserError(_dotted(field, str(error))) from error
    except TypeError as error:
        # A maker that passes settings on: what they reach has the last word.
        unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unexpected is None:
            raise
        accepted = list(_parameters(make, len(arguments)))
        raise UnknownSettingError(field, unexpected[1], accepted) from error


def _read_settings(
    field: str, make: Callable[..., Any], skipped: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings by name, each read for the type of its parameter."""
    parameters = _parameters(make, skipped)
    open_ended = _passes_on(make)
    # The skipped parameters have names, too, which are not the user's to set.
    named = inspect.signature(make).parameters
    values = {}
    for name, value in settings.items():
        if name in parameters:
            values[name] = _read(_dotted(field, name), value, parameters[name].hint)
        elif open_ended and name not in named:
            values[name] = value
        else:
            raise UnknownSettingError(field, name, list(parameters))
    for name, parameter in parameters.items():
        if parameter.required and name not in settings:
            raise UserError(f"{_dotted(field, name)}: not given, and it has no default")
    return values


def _dotted(field: str, name: str) -> str:
    if not field:
        return name
    return f"{field}.{name}"


class _Parameter(NamedTuple):
    hint: Any
    required: bool


def _parameters(make: Callable[..., Any], skipped: int) -> dict[str, _Parameter]:
    """Return the parameters by name that a config may set.

    The first `skipped` ones are left out. A parameter that a `partial` fixed to a class or
    function, a part, is replaced by the part's parameters.
    """
    hints = _type_hints(make)
    # What a `partial` has set for a part behind `**others` is not in its signature.
    fixed = make.keywords if isinstance(make, partial) else {}
    parameters: dict[str, _Parameter] = {}
    for parameter in list(inspect.signature(make).parameters.values())[skipped:]:
        if _is_part(parameter):
            parameters |= _parameters(parameter.default, skipped)
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            required = parameter.default is parameter.empty
            parameters[parameter.name] = _Parameter(hints.get(parameter.name, Any), required)
    for name in parameters.keys() & fixed.keys():
        parameters[name] = parameters[name]._replace(required=False)
    return parameters


def _type_hints(make: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a maker's parameters; none where they cannot be resolved."""
    while isinstance(make, partial):
        make = make.func
    target: Any = make
    if isinstance(make, type):
        target = next(base for base in make.__mro__ if "__init__" in vars(base))
        dataclass_parameters = vars(target).get("__dataclass_params__")
        if dataclass_parameters is None or not dataclass_parameters.init:
            # A dataclass's own `__init__` names the types of inherited fields in its own module,
            # where they may not be known; the class itself does not.
            target = target.__init__
    try:
        return get_type_hints(target)
    except NameError:
        # Of a library that imports some names for type checkers alone, as torch's schedulers do.
        return {}


def _is_part(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty and callable(parameter.default)


def _passes_on(make: Callable[..., Any]) -> bool:
    """Return whether a maker hands settings that it does not know to something unseen."""
    parameters = inspect.signature(make).parameters.values()
    takes_more = False
    for parameter in parameters:
        if _is_part(parameter):
            return False
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_more = True
    return takes_more


# Reading a value for a type hint. jsonargparse does this for the command line, but not here: it has
# no function that reads one value (each needs a parser, and each mistake is English to take apart),
# and it reads more than a config means: the string "10" as 10, and infinite numbers, which the
# results' JSON cannot hold.


def _read(field: str, value: Any, hint: Any) -> Any:
    """Return a config's value for a type hint; a number may be written as a fraction."""
    if _fits(value, hint):
        return value
    if isinstance(value, str) and _fits(0.5, hint):
        return float(Fraction(value, field))
    raise UserError(f"{field}: expected {expected(hint)}, got {shown(value)}")


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value read from a config has a type, without any conversion."""
    if hint is Any:
        return True
    if hint is float:
        return _is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin = get_origin(hint)
    if origin is None:
        return isinstance(value, hint)
    return _fits_parameterised(value, origin, get_args(hint))


def _fits_parameterised(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Return whether a value has the type `origin[arguments]`."""
    if origin in (Union, types.UnionType):
        return any(_fits(value, alternative) for alternative in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            return False
        item_hint = arguments[0] if arguments else Any
        return all(_fits(item, item_hint) for item in value)
    return isinstance(value, origin)


def _is_finite(value: Any) -> bool:
    """Return whether a value is a number, neither infinite nor NaN: JSON has no such numbers."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


_WORDS: dict[Any, str] = {
    bool: "true or false",
    dict: "a mapping",
    float: "a finite number",
    Fraction: "a fraction such as 8/255",
    int: "a whole number",
    str: "a string",
    type(None): "null",
}
_LISTS: dict[Any, str] = {
    float: "a list of numbers",
    int: "a list of whole numbers",
    str: "a list of strings",
}


def expected(hint: Any) -> str:
    """Return a type hint in a user's words: `a whole number or null`."""
    kinds = alternatives(hint)
    if float in kinds and str in kinds:
        # A string that stands for a number is a fraction.
        kinds[kinds.index(str)] = Fraction
    choices: list[str] = []
    words: list[str] = []
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices += map(str, get_args(kind))
        else:
            words.append(_in_words(kind))
    if choices:
        words.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")
    return " or ".join(dict.fromkeys(words))


def alternatives(hint: Any) -> list[Any]:
    """Return the types that a union is of, those of unions in it too; any other type by itself."""
    if get_origin(hint) not in (Union, types.UnionType):
        return [hint]
    kinds: list[Any] = []
    for kind in get_args(hint):
        kinds += alternatives(kind)
    return kinds


def _in_words(hint: Any) -> str:
    """Say a type other than a union or choices in a user's words."""
    kind = get_origin(hint) or hint
    if kind in (list, tuple, Sequence):
        return _LISTS.get(next(iter(get_args(hint)), None), "a list")
    if isinstance(kind, type) and (issubclass(kind, Mapping) or is_dataclass(kind)):
        return "a mapping"
    return _WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}")
