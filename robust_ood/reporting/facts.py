"""The entries of an environment (command, versions, settings) as a report shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import yaml

_VERBATIM = ("command", "config")  # facts shown as they are written, in a block of their own


class Fact(NamedTuple):
    """An entry of the environment. verbatim: keep its line breaks."""

    name: str
    text: str
    verbatim: bool


def facts_of(environment: Mapping[str, object]) -> list[Fact]:
    """Return the entries of an environment as text."""
    facts = []
    for name, value in environment.items():
        facts.append(Fact(name, _text(name, value), name in _VERBATIM))
    return facts


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return json.dumps(value)
    if name == "config":
        return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()
    entries = []
    for key, entry in value.items():
        if isinstance(entry, list):
            entry = ", ".join(map(str, entry))
        entries.append(f"{key} {entry}")
    return "; ".join(entries)
