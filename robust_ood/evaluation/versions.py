"""The numbers of the code that scores depend on, raised by hand where results change.

They are part of every key in the store, so that a changed computation is computed again. A test
(`tests/unit/test_versions.py`) compares the code of these modules with what was recorded, and fails
where it changed: then either results change and the number here is raised, or they do not; in both
cases `python tests/record_code.py` records the code anew.

This module needs the standard library alone, so that any Python can run it.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]


class Part(NamedTuple):
    """A part of the code: its number, and its files and folders, relative to the package."""

    number: int
    paths: tuple[str, ...]


PARTS = {
    "engine": Part(
        1,
        (
            "inputs.py",
            "losses.py",
            "modes.py",
            "perturb.py",
            "randomness.py",
            "regions.py",
            "rules.py",
            "safe_spots.py",
        ),
    ),
    "models": Part(2, ("models",)),
    "detectors": Part(3, ("detectors",)),
    "attacks": Part(3, ("attacks",)),
    "data": Part(2, ("data/sources/files.py", "data/sources/form.py", "data/loaders.py")),
    "scoring": Part(1, ("evaluation/scoring.py", "evaluation/settled.py")),
    "metrics": Part(1, ("metrics",)),
    "sanity": Part(2, ("evaluation/sanity.py",)),
    "certificates": Part(1, ("certify", "bounds")),
    "pictures": Part(
        1,
        (
            "evaluation/curves.py",
            "evaluation/picture_settings.py",
            "evaluation/scene.py",
            "evaluation/transfer.py",
        ),
    ),
}
SCORES = ("engine", "models", "detectors", "attacks", "data", "scoring")
"""The parts that every score depends on."""


def code_version(*more: str) -> str:
    """Return the numbers of the parts that scores depend on, and of `more` parts, as one text."""
    return ", ".join(f"{name} {PARTS[name].number}" for name in (*SCORES, *more))


def modules(part: str) -> Iterator[Path]:
    """Yield the files of a part.

    Raises: `FileNotFoundError` for a path of `PARTS` that does not exist.
    """
    for name in PARTS[part].paths:
        path = PACKAGE / name
        if not path.exists():
            raise FileNotFoundError(f"{path}: correct PARTS in {__file__}")
        if path.is_dir():
            yield from sorted(path.rglob("*.py"))
        else:
            yield path


def digest(source: str) -> str:
    """Return 16 hexadecimal digits of Python code, the same for every version of Python.

    Comments, docstrings and formatting do not count.

    Raises: `SyntaxError` for text that is no Python code.
    """
    tree = "".join(_written(ast.parse(source)))
    return hashlib.blake2b(tree.encode(), digest_size=8).hexdigest()


def _written(value: object) -> Iterator[str]:
    """Yield a syntax tree as text.

    `ast.dump` would not do: versions of Python differ in which empty fields they write, and in how
    they split the texts of an f-string.
    """
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for name in value._fields:
            content = _content(value, name)
            # A field that only newer grammars have is empty in code that older ones read, too.
            if content not in (None, []) and name not in ("ctx", "kind", "type_comment"):
                yield f" {name}="
                yield from _written(content)
        yield ")"
    elif isinstance(value, list):
        yield "["
        for item in value:
            yield from _written(item)
            yield ","
        yield "]"
    else:
        yield ascii(value)


def _content(node: ast.AST, name: str) -> object:
    """Return what a field of a node holds, without docstrings and as every Python splits it."""
    content: object = getattr(node, name, None)
    if not isinstance(content, list):
        return content
    if isinstance(node, ast.JoinedStr):
        return _joined(content)
    if name == "body":
        return [statement for statement in content if not _is_text(statement)]
    return content


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _joined(pieces: list[ast.expr]) -> list[object]:
    """Return the pieces of an f-string with neighbouring texts as one, and without empty ones."""
    joined: list[object] = []
    for piece in pieces:
        if not isinstance(piece, ast.Constant):
            joined.append(piece)
        elif joined and isinstance(joined[-1], str):
            joined[-1] += str(piece.value)
        elif piece.value:
            joined.append(piece.value)
    return joined
