"""Short names of everything that determines a score: networks, detectors, attacks, images, and this
code.

Equal fingerprints mean equal scores, on every machine; what cannot be seen in a thing's settings,
tensors and source text (the version of torch, the device) is not in them.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robust_ood.data import ImageSet
from robust_ood.data.files import ImageFiles

_PACKAGE = Path(__file__).parents[1]
_NUMERIC = (
    *(
        "losses.py",
        "modes.py",
        "perturb.py",
        "randomness.py",
        "regions.py",
        "rules.py",
        "safe_spots.py",
    ),
    *("attacks", "detectors", "models", "evaluation/cells.py", "evaluation/scores.py"),
    *("data/files.py", "data/loaders.py"),
)
_INTERNAL = {
    *vars(nn.Module()),
    "training",
}  # hooks, flags, and the parts that are described on their own
_PLAIN = (bool, int, float, str, type(None))
_OURS = ("robust_ood.", "torch.", "builtins.", "abc.", "typing.", "collections.")


def fingerprint(thing: Any, known: Mapping[int, str] | None = None) -> str:
    """Return 32 hexadecimal digits that are the same for equal things, in every process and on
    every device.

    Args:
        thing: plain values, tensors, dataclasses, functions, modules (settings, parameters,
            buffers, parts; not their train or eval flags), and collections of them. Of classes
            outside of this package and of torch, the source text counts too.
        known: fingerprints by `id` of parts that have been taken already, such as a large
            network's.
    """
    return _hash([json.dumps(_describe(thing, known or {}, ()), sort_keys=True).encode()])


def content(images: ImageSet, start: int, stop: int) -> str:
    """Return the fingerprint of the pixels of some images; of image files, their bytes and how they
    are fitted.

    Raises: `UserError` where more images cannot be read than the set allows.
    """
    storage, indices = images.images, torch.arange(start, stop)
    if isinstance(storage, ImageFiles):
        return _hash(_file_parts(storage, indices.tolist()))
    taken = images.take(indices)
    images.note_unreadable(taken.unreadable)
    return fingerprint([taken.images, taken.indices])


@cache
def code_version(*others: str) -> str:
    """Return the package's version and the fingerprint of the source that scores depend on.

    Comments, docstrings and formatting do not count. `others` are further files of the package, by
    relative path.
    """
    paths = [path for name in (*_NUMERIC, *others) for path in _sources(_PACKAGE / name)]
    return f"{version('robust-ood')}+{_hash(_code(path) for path in paths)[:12]}"


def _sources(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _code(path: Path) -> bytes:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return f"{path.relative_to(_PACKAGE).as_posix()} {ast.dump(tree)}".encode()


def _is_text(part: ast.stmt) -> bool:
    return (
        isinstance(part, ast.Expr)
        and isinstance(part.value, ast.Constant)
        and isinstance(part.value.value, str)
    )


def _hash(parts: Iterable[bytes]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _file_parts(files: ImageFiles, indices: list[int]) -> Iterable[bytes]:
    yield repr(files.fit).encode()
    for index in indices:
        path = files.path(index)
        yield f"{index} ".encode() + (path.read_bytes() if path.is_file() else b"")


def _describe(thing: Any, known: Mapping[int, str], above: tuple[int, ...]) -> Any:
    """Return what a thing is made of, as JSON has it."""
    if isinstance(thing, _PLAIN):
        return thing
    if isinstance(thing, np.generic):
        return _describe(thing.item(), known, above)
    if id(thing) in known:
        return {"known": known[id(thing)]}
    if id(thing) in above:
        return {"above": above.index(id(thing))}  # a part that refers to its whole

    def inside(part: Any) -> Any:
        return _describe(part, known, (*above, id(thing)))

    if isinstance(thing, Tensor):
        flat = thing.detach().cpu().contiguous().reshape(-1)
        return {
            str(thing.dtype): list(thing.shape),
            "bytes": _hash([flat.view(torch.uint8).numpy().tobytes()]),
        }
    if isinstance(thing, np.ndarray):
        return {str(thing.dtype): list(thing.shape), "bytes": _hash([thing.tobytes()])}
    if isinstance(thing, nn.Module):
        tensors = {**thing._parameters, **thing._buffers}
        own = {name: value for name, value in vars(thing).items() if name not in _INTERNAL}
        return [_kind(type(thing)), inside(own), inside(tensors), inside(dict(thing._modules))]
    if isinstance(thing, Mapping):
        return {"mapping": [[inside(key), inside(value)] for key, value in thing.items()]}
    if isinstance(thing, (list, tuple)):
        return [inside(part) for part in thing]
    if isinstance(thing, (set, frozenset)):
        return {"set": sorted(json.dumps(inside(part)) for part in thing)}
    if isinstance(thing, partial):
        return ["partial", inside(thing.func), inside(thing.args), inside(thing.keywords)]
    if isinstance(thing, MethodType):
        return ["method", inside(thing.__func__), inside(thing.__self__)]
    if isinstance(thing, FunctionType):
        held = [cell.cell_contents for cell in thing.__closure__ or ()]
        defaults = [thing.__defaults__, thing.__kwdefaults__]
        return [*_function(thing), inside(held), inside(defaults)]
    if isinstance(thing, type):
        return _kind(thing)
    if isinstance(thing, BuiltinFunctionType):  # its text holds an address
        bound = None if isinstance(thing.__self__, ModuleType) else inside(thing.__self__)
        return [thing.__qualname__, bound]
    if isinstance(thing, (torch.dtype, torch.device, Path)):
        return str(thing)
    if hasattr(thing, "__dict__"):
        return [_kind(type(thing)), inside(vars(thing))]
    # Where this holds an address, what depends on it is computed again: rather that than something
    # stale.
    return [_kind(type(thing)), repr(thing)]


def _function(thing: FunctionType) -> list[Any]:
    """Return a function's name and, where no version that we know fixes what it does, what it
    computes.
    """
    name = f"{thing.__module__}.{thing.__qualname__}"
    return (
        [name] if name.startswith(_OURS) and "<" not in name else [name, _computed(thing.__code__)]
    )


def _computed(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), [_constant(one) for one in code.co_consts], code.co_names]


def _constant(one: Any) -> Any:
    if isinstance(one, CodeType):
        return _computed(one)
    # A set of texts has another order in each process.
    return sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one)


def _kind(kind: type) -> list[str]:
    """Return a class's name and, for classes whose code is in no version that we know, its
    source.
    """
    theirs = [base for base in kind.__mro__ if not f"{base.__module__}.".startswith(_OURS)]
    return [
        f"{kind.__module__}.{kind.__qualname__}",
        *(_hash([_text(base).encode()]) for base in theirs),
    ]


@cache
def _text(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        return ""
