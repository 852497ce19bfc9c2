"""Which figures a report has: it hands results, stored scores and pictures to what draws them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from robust_ood.evaluation.curves import ScoreTrace, curve
from robust_ood.evaluation.pictures import Picture
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.figures.canvas import figure_names, slug
from robust_ood.reporting.figures.distributions import score_histograms, score_shifts
from robust_ood.reporting.figures.errors import mistakes
from robust_ood.reporting.figures.images import AttackedImages, image_strips, landscapes
from robust_ood.reporting.figures.lines import Panels, Point, Points, auroc_by_radius, auroc_by_size
from robust_ood.reporting.figures.traces import score_by_size
from robust_ood.reporting.pooled import ScoresBySide, pooled, strongest_attack
from robust_ood.reporting.report_data import GROUPS, ReportData

_CURVE_POINTS = 25


def radius_figures(data: ReportData, kind: str = "auroc by radius") -> Iterator[Figure]:
    """Yield AUROC against radius, a figure for each norm; `kind` begins their names."""
    names = figure_names(kind, [(norm,) for norm in data.norms])
    for norm in data.norms:
        panels: dict[tuple[str, str], dict[str, Points]] = {}
        for model in data.models:
            for group in data.groups:
                lines = _radius_lines(data, model, group, norm)
                if lines:
                    panels[model, group] = lines
        if panels:
            yield auroc_by_radius(panels, norm, names[norm,])


def _radius_lines(data: ReportData, model: str, group: str, norm: str) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for detector in data.detectors:
        points = []
        for radius, row in data.rows_by_radius(model, detector, group, norm):
            points.append(Point(radius, row.auroc, data.deviation(row) or 0.0))
        if len(points) > 1:
            lines[detector] = points
    return lines


def histogram_figures(data: ReportData) -> Iterator[Figure]:
    """Yield a figure of score histograms for each detector whose scores are in the folders."""
    names = figure_names("scores", [(detector,) for detector in data.detectors])
    for detector in data.detectors:
        scores: dict[str, tuple[ScoresBySide, ScoresBySide]] = {}
        attacks: dict[str, str] = {}
        thresholds: dict[str, float] = {}
        for model in data.models:
            attack = strongest_attack(data, model, detector)
            if attack is None:
                continue
            clean = pooled(data.scores(model, detector, "none"))
            attacked = pooled(data.scores(model, detector, attack))
            threshold = data.threshold(model, detector)
            complete = _has_both_kinds(clean) and _has_both_kinds(attacked)
            if complete and threshold is not None:
                scores[model] = (clean, attacked)
                attacks[model] = attack
                thresholds[model] = threshold
        if scores:
            yield score_histograms(scores, attacks, thresholds, detector, names[detector,])


def _has_both_kinds(sides: ScoresBySide) -> bool:
    return "id" in sides and len(sides) > 1


def shift_figures(data: ReportData) -> Iterator[Figure]:
    """Yield a figure of score shifts for each detector that has such a picture."""
    names = figure_names("shifts", [(detector,) for detector in data.detectors])
    for detector in data.detectors:
        shifts: dict[str, tuple[NDArray[Any], ScoresBySide]] = {}
        for picture in data.drawn("shift"):
            if picture.detector == detector:
                shifts[picture.model] = (picture.arrays["sizes"], _shift_sides(picture))
        if shifts:
            yield score_shifts(shifts, detector, names[detector,])


def _shift_sides(picture: Picture) -> ScoresBySide:
    """Return the shifts of each side that the picture has, `(sizes, N)`."""
    sides = {}
    for side in ("in", *GROUPS):
        if side in picture.arrays:
            sides[side] = picture.arrays[side]
    return sides


def curve_figures(data: ReportData) -> Iterator[Figure]:
    """Yield AUROC against perturbation size in either norm: outliers perturbed alone, then both."""
    pictures = data.drawn("curves")
    if not pictures:
        return
    # Where outliers alone were attacked, the inliers have one row, that of the clean scores.
    both_sides = [picture for picture in pictures if len(picture.arrays["in_scores"]) > 1]
    for attacked, chosen in (("outliers", pictures), ("inliers and outliers", both_sides)):
        if not chosen:
            continue
        # (steps + 1, N)
        images = max(_outlier_count(picture) for picture in chosen)
        for norm in ("Linf", "L2"):
            panels = _curve_panels(chosen, norm, both=attacked != "outliers")
            name = slug("auroc by norm", norm, attacked)
            yield auroc_by_size(panels, norm, name, attacked, images)


def _outlier_count(picture: Picture) -> int:
    """Return how many outliers a picture of curves has in its largest group."""
    counts = []
    for group in GROUPS:
        name = f"{group}_scores"
        if name in picture.arrays:
            counts.append(int(picture.arrays[name].shape[1]))
    return max(counts)


def trace_figures(data: ReportData) -> Iterator[Figure]:
    """Yield the score of each image against the perturbation's size, a figure for each detector."""
    pictures = data.drawn("curves")
    subjects = dict.fromkeys((picture.subject,) for picture in pictures)
    names = figure_names("score by norm", subjects)
    by_subject: dict[str, dict[tuple[str, str], ScoreTrace]] = {}
    for picture in pictures:
        panels = by_subject.setdefault(picture.subject, {})
        for side in ("in", *GROUPS):
            if len(picture.arrays.get(f"{side}_scores", ())) > 1:
                panels[picture.model, side] = _trace(picture.arrays, side)
    for subject, panels in by_subject.items():
        yield score_by_size(panels, subject, names[subject,])


def _curve_panels(pictures: list[Picture], norm: str, *, both: bool) -> Panels:
    # One grid for all detectors, up to the largest median size that any of them has.
    grid = np.linspace(0, max(_reaches(pictures, norm)), _CURVE_POINTS)
    panels: dict[tuple[str, str], dict[str, Points]] = {}
    for picture in pictures:
        for group in GROUPS:
            if f"{group}_scores" in picture.arrays:
                lines = panels.setdefault((picture.model, group), {})
                lines[picture.subject] = _curve(picture, group, norm, grid, both=both)
    return panels


def _reaches(pictures: list[Picture], norm: str) -> Iterator[float]:
    """Yield the median size of the last step of each picture's outliers."""
    for picture in pictures:
        for group in GROUPS:
            name = f"{group}_{norm.lower()}"
            if name in picture.arrays:
                yield float(np.median(picture.arrays[name][-1]))


def _curve(
    picture: Picture, group: str, norm: str, grid: NDArray[np.float64], *, both: bool
) -> Points:
    inliers = _trace(picture.arrays, "in")
    outliers = _trace(picture.arrays, group)
    # It ends where its own images have ended: beyond, nothing was measured.
    end = float(np.median(picture.arrays[f"{group}_{norm.lower()}"][-1]))
    sizes = [*grid[grid < end].tolist(), end]
    # The first step's scores are those of the clean images.
    moved: ScoreTrace | torch.Tensor = inliers.scores[0]
    if both:
        moved = inliers
    name: Literal["Linf", "L2"] = "Linf" if norm == "Linf" else "L2"
    points = curve(moved, outliers, sizes, name)
    return [Point(*point) for point in zip(points.sizes, points.aurocs, strict=True)]


def _trace(arrays: Any, side: str) -> ScoreTrace:
    # Each is (steps + 1, N).
    return ScoreTrace(
        scores=torch.from_numpy(arrays[f"{side}_scores"]),
        linf=torch.from_numpy(arrays[f"{side}_linf"]),
        l2=torch.from_numpy(arrays[f"{side}_l2"]),
    )


def landscape_figures(data: ReportData) -> Iterator[Figure]:
    """Yield a landscape for each network and detector that has such a picture."""
    pictures = data.drawn("landscape")
    names = figure_names("landscape", map(_subject, pictures))
    for picture in pictures:
        yield landscapes(
            picture.arrays["offsets"],
            picture.arrays["scores"],
            picture.about["groups"],
            picture.about["sets"],
            subject=f"{picture.detector} on {picture.model}",
            name=names[_subject(picture)],
        )


def strip_figures(data: ReportData) -> Iterator[Figure]:
    """Yield attacked images for each network and detector that has such a picture."""
    pictures = data.drawn("strips")
    names = figure_names("images", map(_subject, pictures))
    for picture in pictures:
        images = AttackedImages(
            clean=picture.arrays["clean"],
            attacked=picture.arrays["attacked"],
            before=picture.arrays["before"],
            after=picture.arrays["after"],
            groups=picture.about["groups"],
            sets=picture.about["sets"],
        )
        yield image_strips(
            images,
            attack=picture.about["attack"],
            subject=f"{picture.detector} on {picture.model}",
            name=names[_subject(picture)],
            threshold=data.threshold(*_subject(picture)),
        )


def error_figures(data: ReportData) -> Iterator[Figure]:
    """Yield the worst mistakes on clean images of each network and detector with such a picture."""
    pictures = data.drawn("errors")
    names = figure_names("errors", map(_subject, pictures))
    for picture in pictures:
        yield mistakes(
            picture.arrays["clean"],
            picture.arrays["scores"],
            picture.about["groups"],
            picture.about["sets"],
            subject=f"{picture.detector} on {picture.model}",
            name=names[_subject(picture)],
            threshold=data.threshold(*_subject(picture)),
        )


def _subject(picture: Picture) -> tuple[str, str]:
    return picture.model, picture.detector


def failures(data: ReportData) -> list[str]:
    """Return why figures are missing that were requested."""
    reasons = []
    for picture in data.pictures:
        if "failed" in picture.about:
            subject = f"{picture.detector} on {picture.model}"
            reasons.append(f"figure {picture.kind} of {subject}: {picture.about['failed']}")
    return reasons
