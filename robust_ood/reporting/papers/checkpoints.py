"""Published claims of robust detection: whose weights they are, and how their evaluation failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from robust_ood.errors import unknown_name


class ChecklistItem(NamedTuple):
    """How published evaluations failed, and where an evaluation with this package shows it."""

    failure: str
    here: str


class PublishedCheckpoint(NamedTuple):
    """A claim whose weights can be evaluated.

    Args:
        paper: authors, year and title.
        repository: of its public code.
        file: which weights, and where they are linked.
        claim: what the paper prints.
        failures: by the name of a checklist's item, what was seen in the paper or its code.
    """

    paper: str
    repository: str
    file: str
    claim: str
    failures: Mapping[str, str]


@cache
def _content() -> dict[str, Any]:
    path = files("robust_ood.reporting.papers").joinpath("checkpoints.yaml")
    entries: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


def checklist() -> dict[str, ChecklistItem]:
    """Return the items by name."""
    items = {}
    for name, item in _content()["checklist"].items():
        items[name] = ChecklistItem(**item)
    return items


def published_checkpoints() -> dict[str, PublishedCheckpoint]:
    """Return the claims by name."""
    claims = {}
    for name, entry in _content()["checkpoints"].items():
        claims[name] = PublishedCheckpoint(**entry)
    return claims


def find_claim(name: str) -> PublishedCheckpoint:
    """Return a claim. Raises: `UserError` with the nearest known name."""
    known = published_checkpoints()
    if name not in known:
        raise unknown_name("published", name, known)
    return known[name]


class Finding(NamedTuple):
    """An item of the checklist that applies to a claim: what was seen, and what holds here."""

    failure: str
    seen: str
    here: str


class CheckedClaim(NamedTuple):
    """A claim beside the results of its weights. others: failures that were not seen."""

    claim: PublishedCheckpoint
    findings: list[Finding]
    others: list[str]


def checked_claims(environments: Iterable[tuple[str, Mapping[str, Any]]]) -> list[CheckedClaim]:
    """Return the claims that the folders of a report evaluate, each once.

    Args:
        environments: models and the environment of each folder, as `ReportData` has them.
    """
    names: dict[str, None] = {}
    for _, environment in environments:
        config = environment.get("config")
        if isinstance(config, Mapping) and config.get("published") in published_checkpoints():
            names[config["published"]] = None
    return [_checked(find_claim(name)) for name in names]


def _checked(claim: PublishedCheckpoint) -> CheckedClaim:
    items = checklist()
    findings = []
    for name, seen in claim.failures.items():
        findings.append(Finding(items[name].failure, seen, items[name].here))
    others = [item.failure for name, item in items.items() if name not in claim.failures]
    return CheckedClaim(claim, findings, others)
