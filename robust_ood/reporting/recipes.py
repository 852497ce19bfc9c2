"""Checkpoints of one recipe: folders evaluated apart are joined, and their means stand for them."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from robust_ood.errors import UserError
from robust_ood.evaluation import Accuracy, Row
from robust_ood.evaluation.results import METRICS, Summary
from robust_ood.evaluation.summaries import summarise
from robust_ood.reporting.report_data import ReportData, read_folders
from robust_ood.texts import radius_text

_GIVE = "give each as NAME=FOLDERS, such as aloe=results/aloe-*"


class Protocol(NamedTuple):
    """On which sets and under which attacks a network was evaluated, in words."""

    sets: frozenset[str]
    attacks: frozenset[str]


class Chosen(NamedTuple):
    """Folders of results, those of each recipe, and the folders left out for want of results."""

    folders: list[Path]
    recipes: dict[str, list[Path]]
    left_out: list[Path]


def choose_folders(
    folders: Sequence[Path], recipes: Mapping[str, str | Path | Sequence[str | Path]]
) -> Chosen:
    """Return the folders of a report.

    Args:
        folders: of single evaluations.
        recipes: by name, a folder, a pattern such as `results/aloe-*`, or several of these.

    Raises: `UserError` naming the recipe for a pattern without results, and for a folder twice.
    """
    chosen = Chosen(list(folders), {}, [])
    # Where each folder was taken, so that no checkpoint counts twice.
    owners = {folder.resolve(): "results" for folder in folders}
    for recipe, patterns in recipes.items():
        field = f"recipes.{recipe}"
        if isinstance(patterns, str | Path):
            patterns = [patterns]
        members: list[Path] = []
        for pattern in patterns:
            members += _matching(field, str(pattern), chosen.left_out)
        for folder in members:
            owner = owners.setdefault(folder.resolve(), field)
            if owner != field or members.count(folder) > 1:
                raise UserError(f"{field}: {folder} is given twice (also in {owner})")
        chosen.recipes[recipe] = members
        chosen.folders.extend(members)
    return chosen


def _matching(field: str, pattern: str, left_out: list[Path]) -> list[Path]:
    """Return the folders with results that match a pattern."""
    paths = sorted(map(Path, glob.glob(pattern)))
    if Path(pattern).is_dir():
        paths = [Path(pattern)]  # its name may have brackets
    members = []
    for path in paths:
        if (path / "results.json").is_file():
            members.append(path)
        elif path.is_dir():
            left_out.append(path)
    if not members:
        raise UserError(f"{field}: no folder with a results.json matches {pattern}")
    return members


def parse_recipes(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return recipes as `NAME=FOLDERS`; a name that comes again adds its folders.

    Raises: `UserError` for a text without a name or folders.
    """
    recipes: dict[str, list[str]] = {}
    for text in texts:
        name, sign, pattern = text.partition("=")
        if not sign or not name.strip() or not pattern:
            raise UserError(f"recipes: got {text!r}; {_GIVE}")
        recipes.setdefault(name.strip(), []).append(pattern)
    return recipes


def read_recipes(chosen: Chosen) -> ReportData:
    """Read folders, and take those of each recipe as its checkpoints.

    Raises: `UserError` for results that cannot be read, and for folders that cannot be joined.
    """
    members = [folder for folders in chosen.recipes.values() for folder in folders]
    data = read_folders(chosen.folders, members)
    position = len(chosen.folders) - sum(map(len, chosen.recipes.values()))
    for recipe, folders in chosen.recipes.items():
        models: list[str] = []
        for folder in folders:
            models += _one_network(recipe, folder, data.models_by_folder[position])
            position += 1
        if recipe in data.models or recipe in data.recipes:
            raise UserError(
                f"recipes.{recipe}: a network or recipe of the folders is called so, too; take "
                "another name"
            )
        _require_alike(data, recipe, dict(zip(models, folders, strict=True)))
        data.recipes[recipe] = models
        joined = {recipe: models}
        results = data.results
        results.summary += summarise(results.rows, results.classification, joined)
    return data


def _one_network(recipe: str, folder: Path, models: Sequence[str]) -> Sequence[str]:
    if len(models) != 1:
        names = ", ".join(models) or "none"
        raise UserError(
            f"recipes.{recipe}: expected one network in each folder, got {names} in {folder}"
        )
    return models


def _require_alike(data: ReportData, recipe: str, folders: Mapping[str, Path]) -> None:
    """Raise `UserError` where checkpoints were evaluated on other sets or under other attacks."""
    protocols = {model: _protocol_of(data, model) for model in folders}
    first, *others = folders
    for other in others:
        for kind in Protocol._fields:
            expected = getattr(protocols[first], kind)
            values = getattr(protocols[other], kind)
            if expected != values:
                raise UserError(
                    f"recipes.{recipe}: {folders[other]} cannot be joined with {folders[first]}: "
                    f"other {kind} ({_difference(expected, values)})"
                )


def _protocol_of(data: ReportData, model: str) -> Protocol:
    sets = set()
    attacks = set()
    for row in data.sets:
        if row.model == model:
            sets.add(f"{row.id} ({row.n_id}) against {row.ood} ({row.n_ood})")
            budget = f"{radius_text(row.norm, row.radius)}, {row.steps} steps"
            attacks.add(f"{row.attack} ({budget}, {row.restarts} restarts)")
    return Protocol(frozenset(sets), frozenset(attacks))


def _difference(expected: frozenset[str], values: frozenset[str]) -> str:
    clauses = []
    if values - expected:
        clauses.append(f"only there: {', '.join(sorted(values - expected))}")
    if expected - values:
        clauses.append(f"missing there: {', '.join(sorted(expected - values))}")
    return "; ".join(clauses)


def headline(data: ReportData) -> ReportData:
    """Return what a report shows first: each recipe's means as one network, and single networks.

    Deviations over the checkpoints are in `ReportData.deviations`. Without recipes, that is the
    report's data itself.
    """
    if not data.recipes:
        return data
    results = replace(data.results, rows=[], classification=[], intervals=[])
    deviations: dict[Row | Accuracy, Mapping[str, float]] = {}
    examples = _first_records(data)
    for summary in data.results.summary:
        example = examples.get(_key(summary.models[0], summary))
        if summary.recipe not in data.recipes or example is None:
            continue
        record = _as_record(example, summary)
        deviations[record] = summary.std
        if isinstance(record, Row):
            results.rows.append(record)
        else:
            results.classification.append(record)
    members = _members(data)
    for name in ("rows", "classification", "intervals"):
        for record in getattr(data.results, name):
            if record.model not in members:
                getattr(results, name).append(record)
    return ReportData(
        results,
        data.environments,
        deviations=deviations,
        checkpoints=dict(data.recipes),
        thresholds_of_recipes=_thresholds(data),
    )


def _thresholds(data: ReportData) -> dict[tuple[str, str], list[float]]:
    """Return the thresholds of each recipe's checkpoints by recipe and detector, where known."""
    known: dict[tuple[str, str], float] = {}
    for row in data.sets:
        if row.threshold is not None:
            known.setdefault((row.model, row.detector), row.threshold)
    thresholds: dict[tuple[str, str], list[float]] = {}
    for recipe, models in data.recipes.items():
        for (model, detector), value in known.items():
            if model in models:
                thresholds.setdefault((recipe, detector), []).append(value)
    return thresholds


def single_checkpoints(data: ReportData) -> ReportData | None:
    """Return the data of the checkpoints that `headline` shows as means; None without recipes."""
    members = _members(data)
    if not members:
        return None
    results = data.results
    rows = [row for row in results.rows if row.model in members]
    accuracies = [row for row in results.classification if row.model in members]
    return ReportData(replace(results, rows=rows, classification=accuracies), data.environments)


def first_checkpoints(data: ReportData) -> ReportData:
    """Return the data with one checkpoint of each recipe, the first, for figures of single images.

    Five seeds would fill a page with pictures that look alike. Without recipes, that is the
    report's data itself.
    """
    left_out = set()
    for models in data.recipes.values():
        left_out.update(models[1:])
    if not left_out:
        return data
    rows = [row for row in data.results.rows if row.model not in left_out]
    pictures = [picture for picture in data.pictures if picture.model not in left_out]
    results = replace(data.results, rows=rows)
    return replace(data, results=results, pictures=pictures, recipes={})


def words_on_checkpoints(data: ReportData) -> str:
    """Say which checkpoints `first_checkpoints` keeps; nothing without recipes."""
    clauses = []
    for recipe, models in data.recipes.items():
        if len(models) > 1:
            clauses.append(f"of {recipe}, {models[0]} stands for {len(models)} checkpoints")
    if not clauses:
        return ""
    return f" Shown are single networks: {'; '.join(clauses)}, whose own reports show the others."


def incomplete_means(data: ReportData) -> list[str]:
    """Return which detectors have no mean, because a checkpoint has no numbers of them."""
    notes = []
    for recipe, models in data.recipes.items():
        by_model: dict[str, set[str]] = {model: set() for model in models}
        for row in data.results.rows:
            if row.model in by_model:
                by_model[row.model].add(row.detector)
        everywhere = set.intersection(*by_model.values())
        for model, detectors in by_model.items():
            for detector in sorted(set().union(*by_model.values()) - detectors):
                notes.append(f"{recipe}: no mean for {detector}, of which {model} has no numbers.")
        if not everywhere:
            notes.append(f"{recipe}: its checkpoints have no detector in common.")
    return notes


def _members(data: ReportData) -> set[str]:
    return {model for models in data.recipes.values() for model in models}


def _first_records(data: ReportData) -> dict[tuple[object, ...], Row | Accuracy]:
    """Return rows and accuracies by network and all that summaries share with them."""
    records: dict[tuple[object, ...], Row | Accuracy] = {}
    for row in data.results.rows:
        records.setdefault(_key(row.model, row), row)
    for accuracy in data.results.classification:
        records.setdefault(_key(accuracy.model, accuracy), accuracy)
    return records


def _key(model: str, record: Row | Accuracy | Summary) -> tuple[object, ...]:
    names = ("detector", "attack", "attacked", "norm", "radius", "id", "ood", "group")
    return (model, *(getattr(record, name, None) for name in names))


def _as_record(example: Row | Accuracy, summary: Summary) -> Row | Accuracy:
    """Return a summary as the record of a network that is called like the recipe."""
    if isinstance(example, Accuracy):
        return replace(example, model=summary.recipe, accuracy=summary.mean["accuracy"])
    means = {name: summary.mean.get(name, getattr(example, name)) for name in METRICS}
    # Thresholds and certificates are those of single checkpoints.
    own: dict[str, Any] = {"threshold": None, "lower": None, "bound": "none"}
    return replace(example, model=summary.recipe, **own, **means)
