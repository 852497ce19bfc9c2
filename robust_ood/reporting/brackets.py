"""What certificates settle, in sentences and in bars."""

from __future__ import annotations

from collections.abc import Iterator

from robust_ood.evaluation import Row
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.figures.brackets import Bracket, draw_brackets
from robust_ood.reporting.figures.canvas import Words, figure_names
from robust_ood.reporting.numbers import percent, rate
from robust_ood.reporting.report_data import ReportData
from robust_ood.texts import radius_text


def bracket_sentences(data: ReportData) -> list[str]:
    """Return what is settled of each detector at each radius, both sides attacked."""
    sentences = []
    for model in data.models:
        for group in data.groups:
            for row in _certified(data, model, group):
                sentences.append(settled(row))
    return sentences


def settled(row: Row) -> str:
    """Return which share of the pairs survives, falls, or is open.

    A pair is an inlier and an outlier; the AUROC is the share of those in the right order.
    """
    assert row.lower is not None
    open_share = max(0.0, row.auroc - row.lower)
    words = (
        f"{row.detector} on {row.model}, {row.group} OOD, {radius_text(row.norm, row.radius)} on "
        f"both sides: {percent(row.lower)} of the pairs are {row.bound} to keep their order, "
        f"{percent(1 - row.auroc)} are proved to lose it by an attack, {percent(open_share)} are "
        "open"
    )
    if row.bound == "certified":
        words += f" (certified with probability {1 - row.alpha:g}, sigma {row.sigma:g}, n = "
        words += f"{row.draws})"
    return f"{words}."


def bracket_figures(data: ReportData) -> Iterator[Figure]:
    """Yield a figure for each network and group of OOD sets that has certificates."""
    subjects = [(model, group) for model in data.models for group in data.groups]
    names = figure_names("brackets", subjects)
    for model, group in subjects:
        brackets = []
        for row in _certified(data, model, group):
            clean = data.clean(row)
            label = f"{row.detector}, {radius_text(row.norm, row.radius)}"
            auroc = None if clean is None else clean.auroc
            brackets.append(Bracket(label, auroc, row.auroc, row.lower or 0.0, row.bound))
        if brackets:
            subject = f"{model}, {group} OOD"
            yield draw_brackets(brackets, subject, names[model, group], _words(subject, brackets))


def _words(subject: str, brackets: list[Bracket]) -> Words:
    widest = max(brackets, key=lambda bracket: bracket.attacked - bracket.lower)
    return Words(
        title=f"Certified to attacked, {subject}",
        caption="Mean AUROC with both sides perturbed. No attack brings it below the left end of a "
        "bar (certified: with a stated probability, for the smoothed detector; guaranteed: without "
        "any); an attack brought it to the right end. What is inside the bar is open.",
        alt=f"Bars of AUROC from certified to attacked. The widest is that of {widest.label}, from "
        f"{rate(widest.lower)} to {rate(widest.attacked)}.",
    )


def _certified(data: ReportData, model: str, group: str) -> list[Row]:
    """Return the means that have certificates, the worst attack of each detector and budget."""
    worst: dict[tuple[str, str, float], Row] = {}
    for row in data.means:
        if (row.model, row.group, row.attacked) != (model, group, "both") or row.lower is None:
            continue
        budget = (row.detector, row.norm, row.radius)
        if budget not in worst or row.auroc < worst[budget].auroc:
            worst[budget] = row
    return list(worst.values())
