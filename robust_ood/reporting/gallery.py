"""Which figures a report has: from results, stored scores and pictures to the figure functions'
arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.evaluation.curves import ScoreTrace, curve
from robust_ood.evaluation.pictures import Picture
from robust_ood.metrics import deployed_threshold
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.figures.canvas import slug
from robust_ood.reporting.figures.distributions import score_histograms, score_shifts
from robust_ood.reporting.figures.images import image_strips, landscapes
from robust_ood.reporting.figures.lines import Points, auroc_by_radius, auroc_by_size
from robust_ood.reporting.source import GROUPS, Scores, Source

_POINTS = 25  # of a curve


def radius_figures(source: Source) -> Iterator[Figure]:
    """Yield AUROC against radius, a figure for each norm."""
    for norm in source.norms:
        lines: dict[tuple[str, str], dict[str, Points]] = {}
        for model in source.models:
            for group in source.groups:
                found: dict[str, Points] = {
                    name: source.by_radius(model, name, group, norm) for name in source.detectors
                }
                kept = {name: points for name, points in found.items() if len(points) > 1}
                if kept:
                    lines[model, group] = kept
        if lines:
            yield auroc_by_radius(lines, norm, slug("auroc by radius", norm))


def histogram_figures(source: Source) -> Iterator[Figure]:
    """Yield a figure of score histograms for each detector whose scores lie in the folders."""
    for detector in source.detectors:
        scores, attacks = {}, {}
        for model in source.models:
            worst = [
                row for group in source.groups if (row := source.worst(model, detector, group))
            ]
            if not worst:
                continue
            attack = min(worst, key=lambda row: row.auroc).attack
            both = [_pooled(source.scores(model, detector, label)) for label in ("none", attack)]
            if all("id" in sides and len(sides) > 1 for sides in both):
                scores[model], attacks[model] = (both[0], both[1]), attack
        if scores:
            yield score_histograms(scores, attacks, detector, slug("scores", detector))


def _pooled(sets: list[Scores]) -> dict[str, NDArray[np.float64]]:
    """Return the scores of each side, all sets of a group together."""
    sides = {side: [one.values for one in sets if one.group == side] for side in ("id", *GROUPS)}
    return {side: np.concatenate(parts) for side, parts in sides.items() if parts}


def shift_figures(source: Source) -> Iterator[Figure]:
    """Yield a figure of score shifts for each detector that has such a picture."""
    for detector in source.detectors:
        found = {
            one.model: (
                one.arrays["sizes"],
                {side: one.arrays[side] for side in ("in", *GROUPS) if side in one.arrays},
            )
            for one in _drawn(source, "shift")
            if one.detector == detector
        }
        if found:
            yield score_shifts(found, detector, slug("shifts", detector))


def curve_figures(source: Source) -> Iterator[Figure]:
    """Yield AUROC against the size of the perturbation, in either norm, outliers moved alone and
    both sides.
    """
    pictures = _drawn(source, "curves")
    if not pictures:
        return
    images = max(one.arrays["in_scores"].shape[1] for one in pictures)
    for attacked, both in (("outliers", False), ("inliers and outliers", True)):
        for norm in ("Linf", "L2"):
            lines: dict[tuple[str, str], dict[str, Points]] = {}
            for one in pictures:
                for group in GROUPS:
                    if f"{group}_scores" in one.arrays:
                        points = _curve(one, group, norm, pictures, both=both)
                        lines.setdefault((one.model, group), {})[one.detector] = points
            yield auroc_by_size(
                lines, norm, slug("auroc by norm", norm, attacked), attacked, images
            )


def _curve(picture: Picture, group: str, norm: str, others: list[Picture], *, both: bool) -> Points:
    """Return AUROC at sizes that are the same for all detectors: up to the largest median size of
    any.
    """
    kind = norm.lower()
    names = [f"{side}_{kind}" for side in GROUPS]
    reach = max(
        float(np.median(one.arrays[name][-1]))
        for one in others
        for name in names
        if name in one.arrays
    )
    inliers, outliers = _trace(picture.arrays, "in"), _trace(picture.arrays, group)
    sizes = np.linspace(0, reach, _POINTS).tolist()
    found = curve(
        inliers if both else inliers.scores[0], outliers, sizes, "Linf" if norm == "Linf" else "L2"
    )
    return list(zip(found.sizes, found.aurocs, strict=True))


def _trace(arrays: Any, side: str) -> ScoreTrace:
    return ScoreTrace(*(torch.from_numpy(arrays[f"{side}_{name}"]) for name in ScoreTrace._fields))


def landscape_figures(source: Source) -> Iterator[Figure]:
    """Yield a landscape for each network and detector that has such a picture."""
    for one in _drawn(source, "landscape"):
        subject = f"{one.detector} on {one.model}"
        arrays, about, name = one.arrays, one.about, slug("landscape", one.model, one.detector)
        yield landscapes(
            arrays["offsets"], arrays["scores"], about["groups"], about["sets"], subject, name
        )


def strip_figures(source: Source) -> Iterator[Figure]:
    """Yield attacked images for each network and detector that has such a picture."""
    for one in _drawn(source, "strips"):
        clean = _pooled(source.scores(one.model, one.detector, "none")).get("id")
        yield image_strips(
            one.arrays["clean"],
            one.arrays["attacked"],
            one.arrays["before"],
            one.arrays["after"],
            one.about["groups"],
            one.about["sets"],
            attack=one.about["attack"],
            subject=f"{one.detector} on {one.model}",
            name=slug("images", one.model, one.detector),
            threshold=None if clean is None else deployed_threshold(torch.from_numpy(clean)),
        )


def failures(source: Source) -> list[str]:
    """Return why figures are missing that were asked for."""
    failed = [one for one in source.pictures if "failed" in one.about]
    return [
        f"figure {one.kind} of {one.detector} on {one.model}: {one.about['failed']}"
        for one in failed
    ]


def _drawn(source: Source, kind: str) -> list[Picture]:
    """Return the pictures of a kind that could be made, in the order of networks and detectors."""
    models, detectors = source.models, source.detectors
    found = [one for one in source.pictures if one.kind == kind and "failed" not in one.about]
    return sorted(found, key=lambda one: (models.index(one.model), detectors.index(one.detector)))
