"""Short names of everything that determines a score: networks, detectors, attacks, images.

Equal fingerprints mean equal scores, on every machine. What cannot be seen in a thing's settings,
tensors and source text (the version of torch, the device) is not in them; `versions` numbers our
own code.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial, singledispatchmethod
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_ood.data import ImageSet
from robust_ood.data.memory import take_by_threads
from robust_ood.data.sources.files import ImageFiles
from robust_ood.evaluation.versions import digest

# Hooks and flags say nothing of scores; parameters, buffers and children are described apart.
_INTERNAL = {*vars(nn.Module()), "training"}
_OURS = ("robust_ood.", "torch.", "builtins.", "abc.", "typing.", "collections.")


def fingerprint(thing: Any, known: Mapping[int, str] | None = None) -> str:
    """Return 32 hexadecimal digits that are the same for equal things, everywhere.

    Args:
        thing: plain values, tensors, dataclasses, functions, modules (settings, parameters,
            buffers, parts; not their train or eval flags), and collections of them. Of classes and
            functions outside of this package and of torch, the source text counts too.
        known: fingerprints by `id` of parts that have been taken already, such as a large
            network's.
    """
    description = _Describer(known or {}).describe(thing)
    return _hash([json.dumps(description, sort_keys=True).encode()])


def content(images: ImageSet, start: int, stop: int, threads: int = 0) -> str:
    """Return the fingerprint of the pixels of the images `start` to `stop` of a set.

    Of image files these are their bytes, and how they are made square. `threads` read the images.

    Raises: `UserError` where more images cannot be read than the set allows.
    """
    storage = images.images
    indices = torch.arange(start, stop)
    if isinstance(storage, ImageFiles):
        return _hash(_file_contents(storage, indices.tolist()))
    taken = take_by_threads(images, indices, threads)
    images.note_unreadable(taken.unreadable)
    return fingerprint([taken.images, taken.indices])


def _hash(blocks: Iterable[bytes]) -> str:
    state = hashlib.blake2b(digest_size=16)
    for block in blocks:
        # The length before each block keeps ["ab", "c"] and ["a", "bc"] apart.
        state.update(len(block).to_bytes(8, "little") + block)
    return state.hexdigest()


def _file_contents(files: ImageFiles, indices: list[int]) -> Iterator[bytes]:
    yield repr(files.form).encode()
    for index in indices:
        path = files.path(index)
        pixels = path.read_bytes() if path.is_file() else b""
        yield f"{index} ".encode() + pixels


class _Describer:
    """Says what things are made of, as JSON has it.

    Args:
        known: fingerprints by `id` of parts that need no description.
    """

    def __init__(self, known: Mapping[int, str]) -> None:
        self.known = known
        self.above: list[int] = []  # ids of the things that contain the one described

    def describe(self, thing: Any) -> Any:
        """Return the description of a thing, with those of its parts inside."""
        if isinstance(thing, (bool, int, float, str, type(None))):
            return thing
        if id(thing) in self.known:
            return {"known": self.known[id(thing)]}
        if id(thing) in self.above:  # a part that refers to its whole
            return {"above": self.above.index(id(thing))}
        self.above.append(id(thing))
        description = self._parts(thing)
        self.above.pop()
        return description

    @singledispatchmethod
    def _parts(self, thing: Any) -> Any:
        if hasattr(thing, "__dict__"):
            return [_class(type(thing)), self.describe(vars(thing))]
        # Where this holds an address, what depends on it is computed again: rather that than
        # something stale.
        return [_class(type(thing)), repr(thing)]

    @_parts.register
    def _(self, thing: np.generic) -> Any:
        return self.describe(thing.item())

    @_parts.register
    def _(self, thing: Tensor) -> Any:
        flat = thing.detach().cpu().contiguous().reshape(-1)
        pixels = flat.view(torch.uint8).numpy().tobytes()
        return {str(thing.dtype): list(thing.shape), "bytes": _hash([pixels])}

    @_parts.register
    def _(self, thing: np.ndarray) -> Any:
        return {str(thing.dtype): list(thing.shape), "bytes": _hash([thing.tobytes()])}

    @_parts.register
    def _(self, thing: nn.Module) -> Any:
        settings = {}
        for name, value in vars(thing).items():
            if name not in _INTERNAL:
                settings[name] = value
        tensors = {**thing._parameters, **thing._buffers}
        children = dict(thing._modules)
        return [_class(type(thing)), *map(self.describe, (settings, tensors, children))]

    @_parts.register
    def _(self, thing: Mapping) -> Any:  # type: ignore[type-arg]
        # Keys need not be texts, so pairs and not a mapping.
        pairs = []
        for key in thing:
            pairs.append([self.describe(key), self.describe(thing[key])])
        return {"mapping": pairs}

    @_parts.register(list)
    @_parts.register(tuple)
    def _(self, thing: Any) -> Any:
        return [self.describe(item) for item in thing]

    @_parts.register(set)
    @_parts.register(frozenset)
    def _(self, thing: Any) -> Any:
        items = []
        for item in thing:
            items.append(json.dumps(self.describe(item)))
        return {"set": sorted(items)}  # a set has another order in each process

    @_parts.register
    def _(self, thing: partial) -> Any:  # type: ignore[type-arg]
        return ["partial", *map(self.describe, (thing.func, thing.args, thing.keywords))]

    @_parts.register
    def _(self, thing: MethodType) -> Any:
        return ["method", self.describe(thing.__func__), self.describe(thing.__self__)]

    @_parts.register
    def _(self, thing: FunctionType) -> Any:
        closure = []  # what it has of the functions around it
        for cell in thing.__closure__ or ():
            closure.append(cell.cell_contents)
        defaults = [thing.__defaults__, thing.__kwdefaults__]
        return [*_function(thing), self.describe(closure), self.describe(defaults)]

    @_parts.register
    def _(self, thing: BuiltinFunctionType) -> Any:  # its text holds an address
        if isinstance(thing.__self__, ModuleType):
            return [thing.__qualname__, None]
        return [thing.__qualname__, self.describe(thing.__self__)]

    @_parts.register
    def _(self, thing: type) -> Any:
        return _class(thing)

    @_parts.register(torch.dtype)
    @_parts.register(torch.device)
    @_parts.register(Path)
    def _(self, thing: Any) -> Any:
        return str(thing)


def _class(kind: type) -> list[str]:
    """Return a class's name, and the source of those of its bases that are no code of ours."""
    description = [f"{kind.__module__}.{kind.__qualname__}"]
    for base in kind.__mro__:
        if not f"{base.__module__}.".startswith(_OURS):
            description.append(_digest(_text(base)))
    return description


def _function(function: FunctionType) -> list[Any]:
    """Return a function's name, and what it computes unless a version of ours says that."""
    name = f"{function.__module__}.{function.__qualname__}"
    if name.startswith(_OURS) and "<" not in name:
        return [name]
    text = _text(function)
    if function.__name__ == "<lambda>":
        text = _lambda(text)
    if text:
        return [name, _digest(text)]
    return [name, _computed(function.__code__)]


@cache
def _text(thing: type | FunctionType) -> str:
    """Return the source text of a class or function; "" where there is none.

    There is none of what was typed into an interpreter, or is not written in Python.
    """
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        return ""


def _lambda(lines: str) -> str:
    """Return the text of the one lambda in some lines; "" where there are several, or part of one.

    The lines of a lambda hold what is around it, too, and need not be whole statements.
    """
    if lines.count("lambda") != 1:
        return ""
    start = lines.index("lambda")
    # The longest text that can be parsed: what follows the lambda is cut off.
    for stop in range(len(lines), start, -1):
        text = f"({lines[start:stop]})"
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError):
            continue
        if isinstance(tree, ast.Lambda):
            return text
    return ""


def _digest(text: str) -> str:
    try:
        return digest(text)
    except SyntaxError:
        return _hash([text.encode()])


def _computed(code: CodeType) -> list[Any]:
    """Return what bytecode computes; another version of Python says it in other words."""
    constants = list(map(_constant, code.co_consts))
    return [code.co_code.hex(), constants, code.co_names]


def _constant(constant: Any) -> Any:
    if isinstance(constant, CodeType):
        return _computed(constant)
    if isinstance(constant, frozenset):  # a set of texts has another order in each process
        return sorted(map(repr, constant))
    return repr(constant)
