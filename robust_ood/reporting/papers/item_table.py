"""The table of an item: the printed numbers and the measured ones, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robust_ood.reporting.formats import PlainTable
from robust_ood.reporting.numbers import rate
from robust_ood.reporting.papers.measured import Measurement
from robust_ood.reporting.papers.published import ResultKey, published_results

_NAMES = ("network", "detector", "in-distribution", "OOD", "attack")
_TITLES = {
    "auroc": "AUROC",
    "fpr95": "FPR95",
    "fpr95_ood_positive": "FPR95, OOD positive",
    "detection_error": "detection error",
}


def item_table(
    title: str,
    printed: Mapping[str, Any],
    measurements: Sequence[Measurement],
    metrics: Sequence[str] = (),
    only: Mapping[str, Sequence[str]] | None = None,
) -> PlainTable:
    """Return the table of an item.

    Args:
        title: its caption.
        printed: `paper` and `tables` of `published.yaml`; nothing where no number is printed.
        measurements: under the paper's names.
        metrics: the columns; those that the paper prints by default.
        only: by field of `ResultKey`, the values that rows may have.
    """
    beside = _printed(printed)
    measured = dict(measurements)
    sets = {key.id for key in measured}
    # Of other in-distributions, the printed numbers would stand alone.
    keys = [key for key in beside if not sets or key.id in sets]
    # What has no printed number comes after what has one; without any, everything is shown.
    for key, values in measured.items():
        if key not in beside and (not beside or set(values) & set(metrics)):
            keys.append(key)
    if only:
        keys = [key for key in keys if _agrees(key, only)]
    chosen = list(metrics) or _metrics(beside, measured)
    pairs = [metric for metric in chosen if any(metric in values for values in beside.values())]
    heads = [("", len(_NAMES))]
    columns = list(_NAMES)
    for metric in chosen:
        titles = ["paper", "here"] if metric in pairs else ["here"]
        heads.append((_TITLES.get(metric, metric), len(titles)))
        columns += titles
    lines = []
    for key in keys:
        line = _name_cells(key)
        shown = ""
        for metric in chosen:
            cells = [_cell(measured.get(key, {}), metric)]
            if metric in pairs:
                cells.insert(0, _cell(beside.get(key, {}), metric))
            shown += "".join(cells)
            line += cells
        if shown:
            lines.append(tuple(line))
    return PlainTable(title, tuple(columns), tuple(lines), heads=tuple(heads), names=len(_NAMES))


def _printed(printed: Mapping[str, Any]) -> dict[ResultKey, dict[str, float]]:
    """Return the printed numbers by what they belong to, in the paper's order."""
    found: dict[ResultKey, dict[str, float]] = {}
    if not printed:
        return found
    for result in published_results():
        if result.paper == printed["paper"] and result.table in printed["tables"]:
            found.setdefault(result.key, {}).update(result.values)
    return found


def _agrees(key: ResultKey, only: Mapping[str, Sequence[str]]) -> bool:
    return all(getattr(key, name) in values for name, values in only.items())


def _metrics(
    beside: Mapping[ResultKey, Mapping[str, float]], measured: Mapping[ResultKey, Any]
) -> list[str]:
    """Return the metrics that are printed or, where none is, measured, each once."""
    metrics: dict[str, None] = {}
    for values in (beside or measured).values():
        metrics.update(dict.fromkeys(values))
    return list(metrics)


def _cell(values: Mapping[str, float], metric: str) -> str:
    if metric not in values:
        return ""
    return rate(values[metric])


def _name_cells(key: ResultKey) -> list[str]:
    attack = "clean"
    if key.attacked != "none":
        size = f"{key.radius:g}"
        if key.norm == "Linf":
            size = f"{255 * key.radius:.3g}/255"
        attack = f"{key.attacked}, {key.norm} {size}"
    return [key.network, key.detector or "classifier", key.id, key.ood, attack]
