"""Which ROC curves a report has: those of stored scores, of recipes as means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from robust_ood.reporting.figures import Figure
from robust_ood.reporting.figures.canvas import figure_names
from robust_ood.reporting.figures.roc import Roc, mean_roc, roc, roc_figure
from robust_ood.reporting.pooled import pooled, separated, strongest_attack
from robust_ood.reporting.report_data import ReportData

ByLabel = dict[str, NDArray[np.float64]]


def roc_figures(data: ReportData) -> Iterator[Figure]:
    """Yield two figures for each detector whose scores are stored: linear and logarithmic axis."""
    subjects = _subjects(data)
    for logarithmic, kind in ((False, "roc"), (True, "roc log")):
        names = figure_names(kind, [(detector,) for detector in data.detectors])
        for detector in data.detectors:
            curves: dict[tuple[str, str], dict[str, Roc]] = {}
            for subject, models in subjects.items():
                curves.update(_of_subject(data, subject, models, detector))
            if curves:
                yield roc_figure(curves, detector, names[detector,], logarithmic=logarithmic)


def _subjects(data: ReportData) -> Mapping[str, list[str]]:
    """Return recipes with their checkpoints, then single networks."""
    subjects = dict(data.recipes)
    members = {model for models in data.recipes.values() for model in models}
    for model in data.models:
        if model not in members:
            subjects[model] = [model]
    return subjects


def _of_subject(
    data: ReportData, subject: str, models: list[str], detector: str
) -> dict[tuple[str, str], dict[str, Roc]]:
    """Return the curves of a network or recipe by group, those that all checkpoints have."""
    by_group: dict[str, list[ByLabel]] = {}
    for model in models:
        for group, curves in _of_model(data, model, detector).items():
            by_group.setdefault(group, []).append(curves)
    means: dict[tuple[str, str], dict[str, Roc]] = {}
    for group, members in by_group.items():
        if len(members) < len(models):
            continue
        for label in members[0]:
            if all(label in curves for curves in members):
                mean = mean_roc([curves[label] for curves in members])
                means.setdefault((subject, group), {})[label] = mean
    return means


def _of_model(data: ReportData, model: str, detector: str) -> dict[str, ByLabel]:
    """Return a network's curves by group of OOD sets, clean and under its strongest attack."""
    attacks = {"clean": "none"}
    strongest = strongest_attack(data, model, detector)
    if strongest is not None:
        attacks["attacked"] = strongest
    by_group: dict[str, ByLabel] = {}
    for label, attack in attacks.items():
        sides = pooled(data.scores(model, detector, attack))
        for group in data.groups:
            scores = separated(sides, group)
            if scores is not None:
                by_group.setdefault(group, {})[label] = roc(*scores)
    return by_group
