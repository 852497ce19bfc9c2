"""Arguments of public functions, checked against their annotations.

What a user passes by mistake (`None`, a text, a list for a tensor) otherwise fails deep inside, in
the words of another library. Only types are checked here, so nothing waits for the device; which
values a function accepts is its own to say.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from robust_ood.errors import UserError, nearest
from robust_ood.texts import shown

P = ParamSpec("P")
R = TypeVar("R")

_BY_VALUE = (int, float, str, list, tuple, dict)
"""Types whose values decide whether they fit an annotation."""

_WORDS: dict[Any, str] = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a string",
    Path: "a path",
    NoneType: "None",
    Callable: "a function",
    Iterable: "several values",
    list: "a list",
    tuple: "a list",
    Sequence: "a list",
}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with a check that each argument is of its annotation's type.

    It raises `UserError`, naming the argument. Annotations that cannot be read at run time are not
    checked.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}
    # Types of arguments that have passed and need no look at their values: hot loops pass tensors.
    passed: set[tuple[type, ...]] = set()

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        types = tuple(map(type, args))
        if not kwargs and types in passed:
            return function(*args, **kwargs)
        if not hints:  # read at the first call, when all modules are complete
            hints.update(_hints(function))
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kind = signature.parameters[name].kind
            if name in hints and kind not in (inspect.Parameter.VAR_KEYWORD,):
                values = value if kind is inspect.Parameter.VAR_POSITIONAL else (value,)
                for item in values:
                    require(name, item, hints[name])
        if not any(issubclass(kind, _BY_VALUE) for kind in types):
            passed.add(types)
        return function(*args, **kwargs)

    return checked


def check_fields(instance: Any) -> None:
    """Raise `UserError`, naming the field, where a dataclass's field is not of its annotation."""
    hints = get_type_hints(type(instance))
    for field in fields(instance):
        require(field.name, getattr(instance, field.name), hints[field.name])


def require(field: str, value: Any, hint: Any) -> None:
    """Raise `UserError`, naming the field, for a value that is not of the type."""
    if fits(value, hint):
        return
    given = shown(value) if isinstance(value, str | int | float | NoneType) else _named(value)
    if isinstance(value, str) and get_origin(hint) is Literal:
        near = nearest(value, map(str, get_args(hint)))
        given += f"; did you mean {near!r}?" if near else ""
    raise UserError(f"{field}: expected {_in_words(hint)}, got {given}")


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotation's type.

    Whole numbers and numbers of other libraries count, NaN and `True` do not. A path may be a
    string, and so may a fraction.
    """
    if isinstance(hint, TypeVar):
        return True
    if hint in _PLAIN:
        return _PLAIN[hint](value)
    origin = get_origin(hint)
    if origin in _PARAMETERISED:
        return _PARAMETERISED[origin](value, get_args(hint))
    return _is_instance(value, origin or hint)


def _is_instance(value: Any, kind: Any) -> bool:
    if hasattr(kind, "can_be"):
        # A configuration's class says what else may be given in its place.
        return bool(kind.can_be(value))
    if isinstance(kind, type) and issubclass(kind, float):
        return _is_number(value) or isinstance(value, str)
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked
        return True


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_any_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    return any(fits(value, kind) for kind in kinds)


def _is_choice(value: Any, choices: tuple[Any, ...]) -> bool:
    # By type, too: `True == 1`, and an array compares with each of its elements.
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _is_list_of(value: Any, kinds: tuple[Any, ...]) -> bool:
    if not isinstance(value, list | tuple):
        return False
    return not kinds or all(fits(item, kinds[0]) for item in value)


def _is_iterable(value: Any, _: tuple[Any, ...]) -> bool:
    if getattr(value, "ndim", 1) == 0:
        return False  # a tensor of one number, which only seems to be
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


_PLAIN: dict[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,
    None: lambda value: value is None,
    float: _is_number,
    int: _is_whole,
    Path: lambda value: isinstance(value, str | Path),
}
_PARAMETERISED: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    Union: _is_any_of,
    UnionType: _is_any_of,
    Literal: _is_choice,
    Callable: lambda value, _: callable(value),
    type: lambda value, _: isinstance(value, type),
    Iterable: _is_iterable,
    list: _is_list_of,
    tuple: _is_list_of,
    Sequence: _is_list_of,
}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = inspect.get_annotations(function, eval_str=True)
    except NameError:  # of names that are imported for type checkers alone
        return {"return": None}
    return {"return": None, **{name: hint for name, hint in hints.items() if name != "return"}}


def _named(value: Any) -> str:
    """Return what a value is: a tensor's type and shape, or the name of its class."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and hasattr(value, "shape"):
        kind = str(dtype).removeprefix("torch.")
        return f"a {type(value).__name__} of {kind} {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _in_words(hint: Any) -> str:
    """Say a type in a user's words: `a whole number or None`."""
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_in_words, arguments)))
    if origin is Literal:
        choices = ", ".join(map(repr, arguments))
        return f"one of {choices}" if len(arguments) > 1 else choices
    if origin in (list, tuple, Sequence) and arguments:
        return f"a list, each {_in_words(arguments[0])}"
    return _class_in_words(origin or hint)


def _class_in_words(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, float):
        return "a fraction such as 8/255"
    name = getattr(kind, "__name__", str(kind))
    if name == "Module":
        name = "torch.nn.Module"
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"
