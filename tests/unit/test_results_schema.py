"""Damaged and foreign results: one line that names file, row and field, and never a traceback."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

from robust_ood.cli import main
from robust_ood.errors import UserError
from robust_ood.evaluation import Results, print_results
from robust_ood.evaluation.pictures import Picture, read_pictures, write_picture
from robust_ood.evaluation.records import Accuracy, CellFiles, Failure, Interval, Row, Summary, Wins
from robust_ood.evaluation.store import Cell, FolderStore

PAGE = Path(__file__).parents[2] / "docs" / "results_schema.md"
RECORDS = {
    "rows": Row,
    "classification": Accuracy,
    "intervals": Interval,
    "members": Wins,
    "failures": Failure,
    "summary": Summary,
    "cells": CellFiles,
}
BUDGET = {"norm": "Linf", "radius": 8 / 255, "steps": 10, "restarts": 1}
RATES = {
    "auroc": 0.75, "aupr_in": 0.5, "aupr_out": 0.5, "fpr95": 0.25, "fpr95_ood_positive": 0.25,
    "detection_error": 0.125, "tpr_deployed": 0.95, "fpr_deployed": 0.0}  # fmt: skip


def sound() -> Results:
    """Make results with a record of each kind."""
    subject = {"model": "net", "detector": "msp", "attack": "pgd"}
    place = {"id": "digits", "ood": "svhn", "group": "far"}
    row = Row(
        **subject, **place, **BUDGET, **RATES, attacked="both", n_id=50, n_ood=40, seconds=1.0
    )
    mean = {"auroc": 0.75, "fpr95": 0.25}
    return Results(
        rows=[row],
        classification=[Accuracy("net", "digits", "pgd", n=50, accuracy=0.5, seconds=1.0, **BUDGET)],
        warnings=["net, msp: masked"],
        environment={"command": "evaluate.py", "sanity": True, "versions": {"torch": "2"}},
        intervals=[
            Interval(
                **subject, **place, attacked="both", level=0.95, samples=9, auroc=(0.7, 0.8),
                fpr95=(0.0, 0.1))],
        members=[Wins("net", "msp", "suite", "digits", "id", 50, {"clean": 5, "pgd": 30})],
        failures=[Failure("net", "vim", "none", "fit", "singular", "Traceback")],
        summary=[
            Summary("aloe", ("net",), "msp", "pgd", "both", mean=mean, std=mean, **place, **BUDGET)],
        cells=[CellFiles("net", "msp", "pgd", "digits", "id", ("store/cells/a.npz",))],
    )  # fmt: skip


WRONG = {
    "null": None,
    "a text": "[red]\x1b[31m",
    "an empty text": "",
    "a number": 3,
    "a fraction": 0.5,
    "negative": -5,
    "huge": 1e308,
    "a long number": 10**400,
    "NaN": math.nan,
    "infinite": math.inf,
    "true": True,
    "a list": [],
    "a list of null": [None],
    "nested": [[1, 2], [3]],
    "an object": {},
    "an object of texts": {"auroc": "x"},
}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a content, also of lists and objects."""
    if path:
        yield path
    inside: Any = ()
    if isinstance(content, dict):
        inside = content.items()
    elif isinstance(content, list):
        inside = enumerate(content)
    for name, value in inside:
        yield from places(value, (*path, name))


def damaged(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    inside: Any = content
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    return content


def read(folder: Path) -> tuple[Results | None, str]:
    """Return results, or why they cannot be read."""
    try:
        return Results.read(folder), ""
    except UserError as error:
        return None, str(error)


CONTENT = json.loads(json.dumps(sound().as_dict()))


def spoken(path: tuple[Any, ...]) -> str:
    text = ""
    for name in path:
        text += f"[{name}]" if isinstance(name, int) else f".{name}"
    return text.removeprefix(".")


@pytest.mark.parametrize("path", list(places(CONTENT)), ids=spoken)
def test_a_damaged_field_is_named_in_one_line_or_can_be_shown(tmp_path, path):
    """Whatever is read can be printed; whatever is refused names the file and the place."""
    from robust_ood.reporting import page, report_data

    named = re.split(r"(?<=\d\])|\.(?=mean|std|wins)", spoken(path))[0]
    for value in WRONG.values():
        (tmp_path / "results.json").write_text(json.dumps(damaged(CONTENT, path, value)))
        results, line = read(tmp_path)
        if results is None:
            assert line.isprintable()
            assert str(tmp_path / "results.json") in line
            assert named in line
            continue
        print_results(results, Console(file=io.StringIO(), force_terminal=True))
        if results.rows:
            data = report_data.read_folders([tmp_path])
            page.page(data, [], [], "files")


@pytest.mark.parametrize("path", list(places(CONTENT)), ids=spoken)
def test_a_missing_field_is_named_or_has_a_default(tmp_path, path):
    content = copy.deepcopy(CONTENT)
    inside: Any = content
    for name in path[:-1]:
        inside = inside[name]
    del inside[path[-1]]
    (tmp_path / "results.json").write_text(json.dumps(content))
    results, line = read(tmp_path)
    if results is None:
        assert str(path[-1]) in line or path[0] in line
    else:
        print_results(results, Console(file=io.StringIO()))


REFUSED = [
    ("rows.0.auroc", -5, "rows[0].auroc: expected float >= 0.0, got -5"),
    ("rows.0.auroc", 1e308, "rows[0].auroc: expected float <= 1.0, got 1e+308"),
    ("rows.0.auroc", math.nan, "rows[0].auroc: expected float >= 0.0, got nan"),
    ("rows.0.auroc", None, "rows[0].auroc: expected float, got None"),
    ("rows.0.n_id", -1, "rows[0].n_id: expected int >= 0, got -1"),
    ("rows.0.group", "middle", "rows[0].group: expected str matching regex"),
    ("rows.0", None, "rows[0]: expected object, got None"),
    ("intervals.0.auroc", [0.5], "intervals[0].auroc: expected array of length 2, got [0.5]"),
    ("intervals.0.auroc", [0.5, 0.25], "intervals[0]: auroc: expected the lower end first"),
    ("cells.0.files", [], "cells[0].files: expected array of length >= 1, got []"),
    ("cells.0.files", ["../../secret"], "cells[0]: files: expected paths inside the folder"),
    ("summary.0.mean", {"fpr95": 0.5}, "summary[0]: mean: expected a number for auroc"),
    ("members.0.n", 0, "members[0].n: expected int >= 1, got 0"),
    ("warnings", "none", "warnings: expected array, got 'none'"),
]


@pytest.mark.parametrize(("place", "value", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_the_report_command_ends_with_one_line(tmp_path, capsys, place, value, words):
    path = tuple(int(name) if name.isdigit() else name for name in place.split("."))
    (tmp_path / "results.json").write_text(json.dumps(damaged(CONTENT, path, value)))
    assert main(["report", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert str(tmp_path / "results.json") in line
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


FILES = {
    "nothing": b"",
    "half": json.dumps(CONTENT).encode()[:-40],
    "bytes": bytes(range(256)),
    "deep": b'{"schema": 1, "rows": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep environment": b'{"schema": 1, "environment": {"x":' + b"[" * 900 + b"]" * 900 + b"}}",
    "digits": b'{"schema": ' + b"9" * 5000 + b"}",
    "a list": b"[]",
    "true": b'{"schema": true}',
    "a later schema": b'{"schema": 3}',
    "nothing inside": b'{"schema": 1}',
}


@pytest.mark.parametrize("content", FILES.values(), ids=list(FILES))
def test_a_file_that_is_no_results_is_named(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=r"^results: .*results\.json") as refusal:
        Results.read(tmp_path)
    assert str(refusal.value).isprintable()


def test_a_folder_or_a_device_in_place_of_results_is_named(tmp_path):
    (tmp_path / "results.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is no file"):
        Results.read(tmp_path)


def test_fields_of_later_releases_are_left_out(tmp_path):
    content = damaged(CONTENT, ("rows", 0, "calibration"), 0.5)
    (tmp_path / "results.json").write_text(json.dumps(content | {"new": []}))
    assert Results.read(tmp_path).as_dict() == sound().as_dict()


def test_lists_that_older_files_lack_are_empty(tmp_path):
    kept = ("schema", "environment", "rows", "classification", "warnings")
    (tmp_path / "results.json").write_text(json.dumps({name: CONTENT[name] for name in kept}))
    results = Results.read(tmp_path)
    assert results.rows == sound().rows
    assert results.cells == results.summary == []


def test_what_no_results_may_hold_is_not_written(tmp_path):
    sound().write(tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    results = sound()
    row = results.rows[0].__dict__ | {"auroc": math.nan}
    results.rows.append(Row(**row))
    with pytest.raises(UserError, match=r"rows\[1\]\.auroc: expected float >= 0\.0, got nan"):
        results.write(tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


def drawings() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Make the arrays and facts of a sound picture of each kind."""
    traces = {}
    for side, count in (("in", 4), ("far", 3)):
        traces[f"{side}_scores"] = np.linspace(0, 1, 5 * count).reshape(5, count)
        traces[f"{side}_linf"] = np.linspace(0, 0.1, 5)[:, None] * np.ones(count)
        traces[f"{side}_l2"] = np.linspace(0, 1, 5)[:, None] * np.ones(count)
    pixels = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    facts = {"groups": ["in", "far"], "sets": ["digits", "svhn"]}
    shift = {"sizes": np.array([0.1]), "in": np.ones((1, 4)), "far": np.zeros((1, 3))}
    strips = {
        "clean": pixels,
        "attacked": 255 - pixels,
        "before": np.arange(2.0),
        "after": np.ones(2),
    }
    return {
        "shift": (shift, {}),
        "curves": (traces, {"loss_of_auroc": {"far": [1.0, 0.5, -0.5]}}),
        "landscape": (
            {"offsets": np.linspace(-1, 1, 3), "scores": np.arange(18.0).reshape(2, 3, 3)}, facts),
        "strips": (strips, facts | {"attack": "pgd"}),
    }  # fmt: skip


ARRAYS = {
    "missing": lambda array: None,
    "NaN": lambda array: np.full(array.shape, np.nan),
    "infinite": lambda array: np.full(array.shape, np.inf),
    "texts": lambda array: np.full(array.shape, "a"),
    "empty": lambda array: array[:0],
    "short": lambda array: array[:-1],
    "flat": lambda array: array.reshape(-1)[:1] if array.ndim > 1 else array[:, None],
    "long": lambda array: np.concatenate([array, array]),
}


def report_of(folder: Path) -> Path:
    from robust_ood.reporting import write_report

    results = sound()
    results.cells = []
    results.write(folder)
    return write_report(folder)


@pytest.mark.parametrize("kind", drawings())
@pytest.mark.parametrize("damage", ARRAYS)
def test_a_damaged_array_of_a_picture_is_named(tmp_path, kind, damage):
    pytest.importorskip("matplotlib")
    whole, facts = drawings()[kind]
    for name, array in whole.items():
        arrays = dict(whole)
        changed = ARRAYS[damage](array)
        arrays[name] = changed
        if changed is None:
            del arrays[name]
        path = write_picture(tmp_path, Picture(kind, "net", "msp", arrays, facts))
        line = refusal_of(tmp_path)
        if line:
            assert str(path) in line
            assert line.isprintable()
        else:  # another picture, but a whole one
            assert damage in ("missing", "short", "long")
            report_of(tmp_path)


def refusal_of(folder: Path) -> str:
    """Return why the pictures of a folder cannot be read, or nothing."""
    try:
        read_pictures(folder)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["curves", "landscape", "strips"])
def test_damaged_facts_of_a_picture_are_named(tmp_path, kind):
    arrays, facts = drawings()[kind]
    for name in facts:
        for value in (None, 3, "x", [], [None, None], ["in"], {"far": [1, 2]}, {"far": None}):
            if (name, value) == ("attack", "x"):
                continue
            write_picture(tmp_path, Picture(kind, "net", "msp", arrays, facts | {name: value}))
            with pytest.raises(UserError, match=r"^figures: .* is damaged \(.*\); remove it$"):
                read_pictures(tmp_path)


@pytest.mark.parametrize("about", [{"failed": 3}, {"failed": None}])
@pytest.mark.parametrize("kind", ["shift", "pie", "", "[/b]"])
def test_unknown_kinds_and_reasons_of_pictures_are_named(tmp_path, kind, about):
    write_picture(tmp_path, Picture(kind, "net", "msp", {}, about))
    with pytest.raises(UserError, match=r"^figures: .*(kind|failed).*; remove it$"):
        read_pictures(tmp_path)


@pytest.mark.parametrize("kind", drawings())
def test_sound_pictures_are_drawn(tmp_path, kind):
    pytest.importorskip("matplotlib")
    write_picture(tmp_path, Picture(kind, "net", "msp", *drawings()[kind]))
    assert 'role="img"' in report_of(tmp_path).read_text()


@pytest.mark.parametrize("arrays", [{}, {"scores": np.empty(0, np.float32)}])
def test_a_cell_without_scores_is_named(tmp_path, arrays):
    from robust_ood.reporting.report_data import read_folders

    store = FolderStore(str(tmp_path))
    store.write("abc", Cell(arrays, {"seconds": 1}))
    results = sound()
    files = (store.path("abc"),)
    results.cells = [CellFiles("net", "msp", "pgd", "digits", "id", files)]
    results.write(str(tmp_path))
    with pytest.raises(UserError, match=r"^results: .*abc\.npz .* scores"):
        read_folders([tmp_path]).scores("net", "msp", "pgd")


def fields_table() -> str:
    """Return the table of `docs/results_schema.md`: what each field of a record may hold."""
    lines = ["| list | field | holds |", "| --- | --- | --- |"]
    for name, kind in RECORDS.items():
        schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
        for field, holds in schema["properties"].items():
            required = "" if field in schema["required"] else "; may be missing"
            lines.append(f"| `{name}` | `{field}` | {_in_words(holds)}{required} |")
    return "\n".join(lines)


def _in_words(holds: dict[str, Any]) -> str:
    if "anyOf" in holds:
        return " or ".join(_in_words(choice) for choice in holds["anyOf"])
    kind = holds["type"]
    if kind == "array":
        if "prefixItems" in holds:
            return f"list of two: {_in_words(holds['prefixItems'][0])}"
        least = " of one or more" if holds.get("minItems") else ""
        return f"list{least}: {_in_words(holds['items'])}"
    if kind == "object":
        return f"object: {_in_words(holds['additionalProperties'])}"
    if "pattern" in holds:
        choices = re.findall(r"\w+(?=[|)])", holds["pattern"])
        return " or ".join(f'"{choice}"' for choice in choices)
    name = {"string": "text", "integer": "whole number", "null": "null"}.get(kind, kind)
    bounds = []
    for key, sign in (
        ("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<")
    ):  # fmt: skip
        if key in holds and holds[key] != 2**53:
            bounds.append(f"{sign} {holds[key]:g}")
    return f"{name} {', '.join(bounds)}".strip()


def test_the_documented_fields_are_those_of_the_records():
    """`python tests/unit/test_results_schema.py` writes the table again."""
    assert fields_table() in PAGE.read_text(encoding="utf-8")


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition("| list | field | holds |")
    after = rest.partition("\n\n")[2]
    PAGE.write_text(f"{before}{fields_table()}\n\n{after}", encoding="utf-8")
    sys.stdout.write(f"wrote {PAGE}\n")
