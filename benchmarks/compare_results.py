"""Compare two folders of results: `python benchmarks/compare_results.py BEFORE AFTER`.

Prints what differs and exits with 1 if anything does. Everything counts that results say: records,
warnings, and the scores in the cells, to the last bit. Times, dates, paths, versions and the
settings of the command do not. Results that older versions wrote can be read, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from robust_ood.evaluation import Results, read_cell
from robust_ood.evaluation.results import CellFiles

LISTS = ("rows", "classification", "intervals", "members", "failures", "summary")
IGNORED = ("seconds", "traceback")
SETTINGS = ("limit", "device", "networks", "attack_precisions")
KEPT = 20  # differences that are printed of each list


def differences(before: Path, after: Path) -> Iterator[str]:
    """Yield what differs between the results of two folders, a line each."""
    old = Results.read(before)
    new = Results.read(after)
    for name in LISTS:
        records = [records_of(getattr(results, name)) for results in (old, new)]
        yield from different_records(name, *records)
    if old.warnings != new.warnings:
        yield f"warnings: {old.warnings} -> {new.warnings}"
    if old.complete != new.complete:
        yield f"complete: {old.complete} -> {new.complete}"
    for name in SETTINGS:
        values = [results.environment.get(name) for results in (old, new)]
        if values[0] != values[1]:
            yield f"environment.{name}: {values[0]} -> {values[1]}"
    yield from different_scores((before, old.cells), (after, new.cells))


def records_of(records: Sequence[Any]) -> list[dict[str, Any]]:
    """Return records without what differs from run to run."""
    plain = []
    for record in records:
        fields = asdict(record)
        plain.append({name: fields[name] for name in fields if name not in IGNORED})
    return plain


def different_records(
    name: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield the fields in which records differ that stand at the same position."""
    if len(before) != len(after):
        yield f"{name}: {len(before)} records -> {len(after)}"
    for number, (old, new) in enumerate(zip(before, after, strict=False)):
        for field in old:
            # Written out, so that NaN equals itself and 1 is not 1.0.
            if repr(old[field]) != repr(new[field]):
                yield f"{name}[{number}].{field}: {old[field]!r} -> {new[field]!r}"


def different_scores(
    before: tuple[Path, Sequence[CellFiles]], after: tuple[Path, Sequence[CellFiles]]
) -> Iterator[str]:
    """Yield the sets whose stored arrays differ; folders without their cells have none."""
    old = dict(columns(*before))
    new = dict(columns(*after))
    for subject in [*old, *(subject for subject in new if subject not in old)]:
        name = f"cells of {', '.join(map(str, subject))}"
        if subject not in old or subject not in new:
            yield f"{name}: in one of both folders only"
            continue
        for array in sorted(old[subject].keys() | new[subject].keys()):
            arrays = [column.get(array) for column in (old[subject], new[subject])]
            if arrays[0] is None or arrays[1] is None:
                yield f"{name}: {array} in one of both folders only"
            elif arrays[0].tobytes() != arrays[1].tobytes():
                yield f"{name}: {array} differ"


def columns(
    folder: Path, cells: Sequence[CellFiles]
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield each set with its stored arrays, those of its chunks as one; winners by their names."""
    for cell in cells:
        paths = [folder / name for name in cell.files]
        if not all(path.is_file() for path in paths):
            continue
        arrays: dict[str, list[Any]] = {}
        for path in paths:
            stored = read_cell(path)
            for name, array in stored.arrays.items():
                if name == "winners":
                    array = np.array(stored.about["members"])[array].astype("U60")
                arrays.setdefault(name, []).append(array)
        subject = (cell.model, cell.detector, cell.attack, cell.images, cell.group)
        yield subject, {name: np.concatenate(parts) for name, parts in arrays.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("before", type=Path, help="folder of a results.json")
    parser.add_argument("after", type=Path, help="another one")
    options = parser.parse_args(arguments)
    lines = list(differences(options.before, options.after))
    for line in lines[:KEPT]:
        print(line)
    if len(lines) > KEPT:
        print(f"... and {len(lines) - KEPT} more")
    if lines:
        return 1
    results = Results.read(options.after)
    print(
        f"equal: {len(results.rows)} rows, {len(results.classification)} accuracies, "
        f"{len(results.intervals)} intervals, {len(results.cells)} sets of scores"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
