"""Training methods against one of them: means over seeds, and which differ from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from torch import Tensor

from robust_ood.errors import unknown_name
from robust_ood.metrics import auroc, holm, paired_bootstrap
from robust_ood.reporting.formats import PlainTable
from robust_ood.reporting.numbers import rate, signed
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.significance import attacked_title, contestants_of, p_value_text

Scores = tuple[Tensor, list[Tensor]]
"""Of one network: the ID images' `(N,)`, and of each OOD set `(M,)`."""


@dataclass(frozen=True)
class Standing:
    """A method's mean AUROC over its networks, and how it differs from the reference's.

    deviation: over the networks; None of one. difference, low, high: to the reference. p_value:
    that there is none, adjusted for the number of methods (Holm). verdict: "better", "worse", or
    "not told apart"; "" of the reference.
    """

    name: str
    networks: int
    mean: float
    deviation: float | None
    difference: float
    low: float
    high: float
    p_value: float
    verdict: str


@dataclass(frozen=True)
class AgainstReference:
    """The standings of one detector under one attack on one group of OOD sets, best first."""

    detector: str
    attack: str
    attacked: str
    group: str
    sets: tuple[str, ...]
    reference: str
    level: float
    standings: tuple[Standing, ...]


def methods_of(data: ReportData) -> dict[str, list[str]]:
    """Return the networks of each method: those of a recipe, and each other one by itself."""
    methods: dict[str, list[str]] = {}
    for summary in data.results.summary:
        methods[summary.recipe] = list(summary.models)
    members = {model for models in methods.values() for model in models}
    for model in data.models:
        if model not in members:
            methods[model] = [model]
    return methods


def against_reference(
    data: ReportData, reference: str, attacked: str, level: float
) -> list[AgainstReference]:
    """Compare all methods with one, for each detector, attack and group of OOD sets.

    Methods that have not all scores of a detector are left out of its comparison.

    Args:
        data: of one or several folders.
        reference: a recipe, or a network of none.
        attacked: the side that is attacked: none, in, out or both.
        level: confidence, in (0, 1).

    Raises: `UserError` for an unknown reference, and networks scored on other images.
    """
    methods = methods_of(data)
    if reference not in methods:
        raise unknown_name("reference", reference, methods)
    found = []
    for (attack, group), contestants in contestants_of(data, attacked).items():
        by_detector: dict[str, dict[str, Scores]] = {}
        sets: tuple[str, ...] = ()
        for contestant in contestants:
            sets = tuple(contestant.outliers)
            scores = (contestant.inliers, list(contestant.outliers.values()))
            by_detector.setdefault(contestant.detector, {})[contestant.model] = scores
        for detector, by_model in by_detector.items():
            complete = {}
            for method, models in methods.items():
                if all(model in by_model for model in models):
                    complete[method] = [by_model[model] for model in models]
            if reference in complete and len(complete) > 1:
                standings = _standings(complete, reference, level)
                found.append(
                    AgainstReference(
                        detector, attack, attacked, group, sets, reference, level, standings
                    )
                )
    return found


def _standings(
    scores: Mapping[str, Sequence[Scores]], reference: str, level: float
) -> tuple[Standing, ...]:
    others = [method for method in scores if method != reference]
    tests = {}
    for method in others:
        id_scores = []
        ood_scores = []
        for both in (scores[method], scores[reference]):
            id_scores.append([inliers for inliers, _ in both])
            ood_scores.append([outliers for _, outliers in both])
        tests[method] = paired_bootstrap(id_scores, ood_scores, level=level)
    adjusted = dict(zip(others, holm([tests[other].p_value for other in others]), strict=True))
    standings = []
    for method, networks in scores.items():
        values = []
        for inliers, outliers in networks:
            values.append(fmean(auroc(inliers, one_set) for one_set in outliers))
        deviation = stdev(values) if len(values) > 1 else None
        change = (0.0, 0.0, 0.0)
        if method != reference:
            change = tests[method][:3]
        p_value = adjusted.get(method, 1.0)
        verdict = ""
        if method != reference:
            verdict = _verdict(change[0], p_value, level)
        standings.append(
            Standing(method, len(values), fmean(values), deviation, *change, p_value, verdict)
        )
    return tuple(sorted(standings, key=lambda standing: -standing.mean))


def _verdict(difference: float, p_value: float, level: float) -> str:
    if p_value >= 1 - level:
        return "not told apart"
    return "better" if difference > 0 else "worse"


def reference_table(comparison: AgainstReference) -> PlainTable:
    """Return the table of a comparison; the reference, and what is better, is in bold."""
    lines = []
    bold = set()
    for place, standing in enumerate(comparison.standings):
        change = ("", "", "")
        if standing.verdict:
            interval = f"{signed(standing.low, 3)} to {signed(standing.high, 3)}"
            change = (signed(standing.difference, 3), interval, p_value_text(standing.p_value))
        lines.append((
            standing.name, str(standing.networks), mean_text(standing), *change,
            standing.verdict or "the reference",
        ))  # fmt: skip
        if standing.verdict in ("", "better"):
            bold.add(place)
    title = attacked_title(
        comparison.group, comparison.sets, comparison.attacked, comparison.attack
    )
    alone = ""
    if all(standing.networks == 1 for standing in comparison.standings):
        alone = "; one network each, so the tests are of these networks, not of their methods"
    columns = (
        "method", "networks", "AUROC", f"minus {comparison.reference}",
        f"{100 * comparison.level:g} % interval", "p (Holm)", "verdict",
    )  # fmt: skip
    return PlainTable(
        f"{comparison.detector}: {title}{alone}", columns, tuple(lines), frozenset(bold)
    )


def mean_text(standing: Standing) -> str:
    """Return a mean with its deviation over networks, where there are several."""
    if standing.deviation is None:
        return rate(standing.mean)
    return f"{rate(standing.mean)} ± {rate(standing.deviation)}"
