"""What folders of results measured, under the papers' names, so that it stands beside theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robust_ood.errors import UserError
from robust_ood.evaluation import Accuracy, Row
from robust_ood.evaluation.encoder_results import NAME as ENCODER
from robust_ood.evaluation.encoder_results import EncoderResults, EncoderRow
from robust_ood.evaluation.pictures import Picture
from robust_ood.regions import Fraction
from robust_ood.reporting.papers.published import ResultKey, recognised, rounded_radius
from robust_ood.reporting.report_data import ReportData, read_folders

MEASUREMENTS = "measurements.json"
"""The file of commands whose numbers are no rows of an evaluation."""
METRICS = ("auroc", "fpr95", "fpr95_ood_positive", "detection_error")
_LOWER_IS_BETTER = ("fpr95", "fpr95_ood_positive", "detection_error")
_ENCODER_BUDGET = ("out", "L2", 10.0)
"""Under which `published.yaml` has all of the encoder attack's tables, which print no radius."""
_CURVES_BUDGET = ("out", "Linf", rounded_radius(1 / 255))
"""At which the curves read the loss of AUROC off."""


class Measurement(NamedTuple):
    """Numbers by metric, fractions, and what they belong to, in a paper's names."""

    key: ResultKey
    values: dict[str, float]


class Names:
    """The papers' names of what results name.

    Args:
        stands_for: by a name in the results, the name whose place it takes; a list of two is a
            network and a detector; `16/255: 1/255` is a radius.
    """

    def __init__(self, stands_for: Mapping[str, Any]) -> None:
        self._names = {}
        self._radii = {}
        for name, paper_name in stands_for.items():
            if "/255" in name:
                self._radii[rounded_radius(Fraction(name))] = rounded_radius(Fraction(paper_name))
            else:
                self._names[name] = paper_name

    def pair(self, network: str, detector: str) -> tuple[str, str]:
        """Return network and detector."""
        named = self._names.get(detector, detector)
        if isinstance(named, list):
            return named[0], named[1]
        return self._names.get(network, recognised(network, "networks") or network), named

    def image_set(self, name: str) -> str:
        """Return a set, or a group of sets."""
        return str(self._names.get(name, recognised(name, "sets") or name))

    def radius(self, radius: float) -> float:
        """Return a radius."""
        radius = rounded_radius(radius)
        return self._radii.get(radius, radius)


def read_measurements(
    folders: Sequence[Path],
    stands_for: Mapping[str, Any],
    averages: Mapping[str, Sequence[str]],
) -> list[Measurement]:
    """Return what the folders measured; what several measured alike, such as seeds, as a mean.

    Of several attacks of one norm and radius, the worst number of each metric counts.

    Args:
        folders: of `evaluate`, `encoder-attack` or a command that writes measurements.
        stands_for: as `Names` takes it.
        averages: by name of a mean, the groups of OOD sets that it is over.
    """
    names = Names(stands_for)
    found: dict[ResultKey, dict[str, list[float]]] = {}
    for folder in folders:
        for key, values in _worst(_of_folder(folder, names, averages)).items():
            lists = found.setdefault(key, {})
            for metric, value in values.items():
                lists.setdefault(metric, []).append(value)
    measurements = []
    for key, lists in found.items():
        means = {metric: sum(values) / len(values) for metric, values in lists.items()}
        measurements.append(Measurement(key, means))
    return measurements


def _worst(measurements: Iterable[Measurement]) -> dict[ResultKey, dict[str, float]]:
    """Return, of measurements with one key, the worst number of each metric."""
    worst: dict[ResultKey, dict[str, float]] = {}
    for key, values in measurements:
        kept = worst.setdefault(key, {})
        for metric, value in values.items():
            if metric not in kept:
                kept[metric] = value
            elif metric in _LOWER_IS_BETTER:
                kept[metric] = max(kept[metric], value)
            else:
                kept[metric] = min(kept[metric], value)
    return worst


def _of_folder(
    folder: Path, names: Names, averages: Mapping[str, Sequence[str]]
) -> Iterator[Measurement]:
    if (folder / MEASUREMENTS).is_file():
        yield from _of_file(folder / MEASUREMENTS, names)
    if (folder / f"{ENCODER}.json").is_file():
        for row in EncoderResults.read(folder).rows:
            yield _of_encoder(row, names)
    if (folder / "results.json").is_file():
        data = read_folders([folder])
        yield from _of_rows([*data.sets, *data.means], names)
        yield from _of_rows(_averaged(data, averages), names)
        for accuracy in data.results.classification:
            yield _of_accuracy(accuracy, names)
        for picture in data.drawn("curves"):
            yield from _of_curves(picture, data, names)


def write_measurements(folder: Path, measurements: Iterable[Measurement]) -> None:
    """Write measurements as a file that `read_measurements` finds."""
    from robust_ood.writing import replace_file

    entries = []
    for key, values in measurements:
        entries.append({**key._asdict(), "values": values})
    replace_file(folder / MEASUREMENTS, json.dumps(entries, indent=1) + "\n")


def _of_file(path: Path, names: Names) -> Iterator[Measurement]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            values = entry.pop("values")
            key = ResultKey(**entry)
            network, detector = names.pair(key.network, key.detector)
            yield Measurement(
                key._replace(
                    network=network,
                    detector=detector,
                    id=names.image_set(key.id),
                    ood=names.image_set(key.ood),
                    radius=names.radius(key.radius),
                ),
                values,
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"results: {path} is damaged; remove its folder") from error


def _of_encoder(row: EncoderRow, names: Names) -> Measurement:
    network, detector = names.pair(row.model, row.detector)
    matched = row.matched.partition(" of ")[0]  # without the detector whose code it is
    ood = f"{names.image_set(row.start)} with the {names.image_set(matched)} of inliers"
    inliers = names.image_set(row.id)
    key = ResultKey(network, detector, inliers, ood, *_ENCODER_BUDGET)
    values = {"auroc": row.auroc, "MAPE, median": row.mape_median}
    return Measurement(key, values)


def _of_rows(rows: Iterable[Row], names: Names) -> Iterator[Measurement]:
    for row in rows:
        network, detector = names.pair(row.model, row.detector)
        budget = (row.attacked, row.norm, names.radius(row.radius))
        if row.attacked == "none":
            budget = ("none", "none", 0.0)
        key = ResultKey(
            network, detector, names.image_set(row.id), names.image_set(row.ood), *budget
        )
        yield Measurement(key, {metric: getattr(row, metric) for metric in METRICS})


def _of_accuracy(accuracy: Accuracy, names: Names) -> Measurement:
    network, _ = names.pair(accuracy.model, "")
    budget = ("in", accuracy.norm, names.radius(accuracy.radius))
    if accuracy.attack == "none":
        budget = ("none", "none", 0.0)
    key = ResultKey(network, "", names.image_set(accuracy.id), "", *budget)
    return Measurement(key, {"accuracy": accuracy.accuracy})


def _of_curves(picture: Picture, data: ReportData, names: Names) -> Iterator[Measurement]:
    """Yield the AUROC of curves, clean and at the radius, and their difference."""
    network, detector = names.pair(picture.model, picture.subject)
    if not data.sets:
        return
    inliers = names.image_set(data.sets[0].id)
    for group, (before, after, change) in picture.about.get("loss_of_auroc", {}).items():
        key = ResultKey(network, detector, inliers, names.image_set(group), "none", "none", 0.0)
        yield Measurement(key, {"auroc": before})
        attacked, norm, radius = _CURVES_BUDGET
        key = key._replace(attacked=attacked, norm=norm, radius=radius)
        yield Measurement(key, {"auroc": after, "loss of AUROC": change})


def _averaged(data: ReportData, averages: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """Yield, for each wanted mean, rows whose rates are means over all sets of its groups."""
    from dataclasses import replace

    for name, groups in averages.items():
        by_subject: dict[tuple[Any, ...], list[Row]] = {}
        for row in data.sets:
            if row.group in groups:
                subject = (row.model, row.detector, row.attack, row.attacked, row.radius)
                by_subject.setdefault(subject, []).append(row)
        for rows in by_subject.values():
            means = {}
            for metric in METRICS:
                means[metric] = sum(getattr(row, metric) for row in rows) / len(rows)
            yield replace(rows[0], ood=name, **means)
