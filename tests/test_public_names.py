"""The public names are those of docs/reference/index.md, and each says what a user has to know of
it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from robust_ood import attacks, detectors, training

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "index.md").read_text()
LISTED = re.findall(r"^\| `(robust_ood[\w.]*)` \| (.+) \|$", PAGE, re.MULTILINE)
MODULES = [name for name, _ in LISTED]

SHAPE = r"\((?:[NMLKDC1]|steps)\b[^()]*\)|\bscalars?\b|\bany shape\b"
OURS = {"Method", "Standard", "Standardize"}  # from no paper
SOURCE = r"Source: .*(?:\b(?:19|20)\d\d\b|\bpapers?\b|\bALOE\b|\bPRO\b|\bFort\b|\bOpenOOD\b|Sec\.|Eq\.|Alg\.)"
RANGE = r"\b(?:in|of) [(\[][^)\]]*, [^)\]]*[)\]]|[<>]=? (?:0|log K)|unbounded|as (?:the|that|those)|\bits own\b"


class Public(NamedTuple):
    """A public class, function, or method of a public class, with the texts that a reader of it has
    before them.
    """

    path: str
    object: object
    own: str
    around: str


def names_of(module: ModuleType) -> list[str]:
    """Return what a module promises: `__all__`, or else what it defines without a leading
    underscore.
    """
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return sorted(getattr(module, "__all__", own))


def own_docstring(value: object) -> str:
    """Return a class's or function's own docstring, not one that it inherits."""
    return (
        inspect.cleandoc(vars(value).get("__doc__") or "")
        if inspect.isclass(value)
        else inspect.getdoc(value) or ""
    )


def public() -> Iterator[Public]:
    seen = set()
    for module in map(import_module, MODULES):
        for name in names_of(module):
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)) or value in seen:
                continue
            seen.add(value)
            home = inspect.getdoc(import_module(value.__module__)) or ""
            yield Public(f"{module.__name__}.{name}", value, own_docstring(value), home)
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                if inspect.isfunction(function) and not method.startswith("_"):
                    promised = [
                        own_docstring(part)
                        for base in value.__mro__[1:-1]
                        for part in (base, getattr(base, method, None))
                    ]
                    around = "\n".join([own_docstring(value), *promised, home])
                    yield Public(
                        f"{module.__name__}.{name}.{method}",
                        function,
                        own_docstring(function),
                        around,
                    )


PUBLIC = list(public())


def annotations(function: object) -> str:
    return " ".join(map(str, inspect.get_annotations(function).values()))  # type: ignore[arg-type]


@pytest.mark.parametrize(("module", "listed"), LISTED, ids=MODULES)
def test_the_public_names_are_those_of_the_page(module, listed):
    """Who adds, renames or removes one changes the page too, and CHANGELOG.md says what to write
    instead.
    """
    assert re.findall(r"`(\w+)`", listed) == names_of(import_module(module))


def test_the_page_lists_every_package():
    import robust_ood

    packages = {
        f"robust_ood.{name}"
        for name in robust_ood.__all__
        if isinstance(getattr(robust_ood, name), ModuleType)
    }
    assert {"robust_ood", *packages} <= set(MODULES)


def test_every_public_name_has_a_docstring():
    assert len(PUBLIC) > 300
    assert [one.path for one in PUBLIC if not one.own] == []


def test_where_tensors_pass_their_shapes_are_said():
    """In the function's own docstring, or in that of its class or module."""
    passing = [
        one
        for one in PUBLIC
        if inspect.isfunction(one.object) and "Tensor" in annotations(one.object)
    ]
    assert len(passing) > 100
    assert [one.path for one in passing if not re.search(SHAPE, one.own + one.around)] == []


def test_the_names_for_configs_are_those_of_the_page():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "names.md").read_text()
    detector_rows, attack_rows = page.split("## Attacks")
    listed = dict(
        re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| [^|]+ \|$", detector_rows, re.MULTILINE)
    )
    assert listed == {name: entry.paper for name, entry in detectors.REGISTRY.items()}
    assert re.findall(r"^\| `([\w-]+)` \| [^|]+ \|$", attack_rows, re.MULTILINE) == list(
        attacks.REGISTRY
    )


def test_the_page_s_ranges_are_those_that_are_searched():
    page = (Path(__file__).parents[1] / "docs" / "reference" / "names.md").read_text()
    detector_rows = page.split("## Attacks")[0]
    listed = dict(
        re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]+) \|$", detector_rows, re.MULTILINE)
    )
    for name, entry in detectors.REGISTRY.items():
        said = []
        for setting, values in entry.ranges.items():
            shown = ", ".join(map(str, values))
            if len(values) > 10:
                shown = f"{len(values)} values in {values[0]:g}..{values[-1]:g}"
            said.append(f"`{setting}` {shown}")
        assert listed[name] == ("; ".join(said) or "-"), name


def classes(module: ModuleType, kind: type) -> list[type]:
    found = [getattr(module, name) for name in module.__all__]
    return [
        one
        for one in found
        if inspect.isclass(one) and issubclass(one, kind) and not inspect.isabstract(one)
    ]


def test_what_is_from_a_paper_names_it():
    detector_classes = classes(detectors, detectors.Detector)
    methods = classes(training, training.Method)
    attacking = [
        value
        for value in attacks.REGISTRY.values()
        if inspect.isclass(value) or inspect.isfunction(value)
    ]
    assert min(map(len, (detector_classes, methods, attacking))) > 5
    lacking = [
        one.__name__
        for one in (*detector_classes, *methods, *attacking)
        if one.__name__ not in OURS and not re.search(SOURCE, own_docstring(one), re.DOTALL)
    ]
    assert lacking == []


def test_every_detector_says_what_its_scores_can_be():
    found = classes(detectors, detectors.Detector)
    assert [
        one.__name__ for one in found if not re.search(RANGE, own_docstring(one), re.IGNORECASE)
    ] == []
