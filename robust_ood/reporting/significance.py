"""Which detectors and networks differ on the same images by more than the draw of the images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev

import torch
from scipy.stats import ttest_1samp, ttest_ind
from torch import Tensor

from robust_ood.errors import UserError
from robust_ood.evaluation.results import Summary
from robust_ood.metrics import Difference, auroc, auroc_interval, delong_test, holm
from robust_ood.reporting.report_data import GROUPS, ReportData, SetScores

SIDES = {"none": ("none", "none"), "in": ("attack", "none"), "out": ("none", "attack"),
         "both": ("attack", "attack")}  # fmt: skip
"""By the side that is attacked, under what inliers and outliers are scored."""

ATTACKED = {
    "none": "clean",
    "in": "inliers attacked",
    "out": "outliers attacked",
    "both": "both sides attacked",
}
"""The same in words."""


@dataclass(frozen=True)
class Contestant:
    """A network and a detector, with the scores of one comparison.

    inliers: `(N,)`. outliers: `(M,)` by OOD set.
    """

    model: str
    detector: str
    inliers: Tensor
    outliers: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.model}, {self.detector}"

    @property
    def auroc(self) -> float:
        """The mean AUROC over the OOD sets."""
        return fmean(auroc(self.inliers, scores) for scores in self.outliers.values())

    def interval(self, level: float) -> tuple[float, float]:
        """Return the interval of the mean AUROC."""
        return auroc_interval(self.inliers, list(self.outliers.values()), level)


@dataclass(frozen=True)
class Standing:
    """One line of a comparison, the best first.

    auroc: the mean over the OOD sets, with its interval. difference: to the best; p_value: that
    there is none, adjusted for the number of comparisons with the best (Holm). wins, losses: the
    contestants that it beats and that beat it significantly, of all pairs (Holm).
    """

    name: str
    auroc: float
    low: float
    high: float
    difference: float
    p_value: float
    wins: int
    losses: int
    is_best: bool


@dataclass(frozen=True)
class Comparison:
    """Contestants on the same images under the same attack.

    significant: by pair of names, whether the first is better, so that all pairs together are
    wrong with a probability of at most 1 - level.
    """

    attack: str
    attacked: str
    group: str
    sets: tuple[str, ...]
    inliers: int
    level: float
    standings: tuple[Standing, ...]
    significant: Mapping[tuple[str, str], bool]


def comparisons(data: ReportData, attacked: str, level: float) -> Iterator[Comparison]:
    """Yield a comparison for each attack and group of OOD sets in which several took part.

    Args:
        data: of one or several folders.
        attacked: the side that is attacked, a key of `SIDES`; clean without attacks.
        level: confidence, in (0, 1).

    Raises: `UserError` where contestants were scored on other images.
    """
    for (attack, group), contestants in contestants_of(data, attacked).items():
        if len(contestants) > 1:
            yield _compared(contestants, attack, attacked, group, level)


def contestants_of(data: ReportData, attacked: str) -> dict[tuple[str, str], list[Contestant]]:
    """Return who took part, by attack and group of OOD sets.

    Raises: `UserError` where contestants were scored on other images.
    """
    attacks = list(dict.fromkeys(row.attack for row in data.sets if row.attack != "none"))
    if attacked == "none":
        attacks = ["none"]
    taking_part = {}
    for group in GROUPS:
        for attack in attacks:
            contestants = list(_contestants(data, attack, attacked, group))
            if contestants:
                _require_same_images(contestants)
                taking_part[attack, group] = contestants
    return taking_part


def attacked_title(group: str, sets: Sequence[str], attacked: str, attack: str) -> str:
    """Return in words on what, and with which side attacked, contestants are compared."""
    under = "" if attack == "none" else f", {attack}"
    return f"{group} OOD ({', '.join(sets)}), {ATTACKED[attacked]}{under}"


def p_value_text(value: float) -> str:
    """Return a p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _contestants(data: ReportData, attack: str, attacked: str, group: str) -> Iterator[Contestant]:
    """Yield those whose scores of all sets are there."""
    labels = {"attack": attack, "none": "none"}
    of_inliers, of_outliers = (labels[side] for side in SIDES[attacked])
    for model in data.models:
        for detector in data.detectors:
            inliers = _inliers(data.scores(model, detector, of_inliers), group)
            ood = group.removeprefix("full-")
            outliers = _of_group(data.scores(model, detector, of_outliers), ood)
            if inliers is not None and outliers:
                yield Contestant(model, detector, inliers, outliers)


def _inliers(scores: Sequence[SetScores], group: str) -> Tensor | None:
    """Return the scores `(N,)` of what counts as inliers beside a group; None where some lack."""
    inliers = list(_of_group(scores, "id").values())
    shifted = list(_of_group(scores, "shifted").values())
    if not inliers or (group.startswith("full-") and not shifted):
        return None
    if group.startswith("full-"):
        inliers += shifted
    return torch.cat(inliers)


def _of_group(scores: Sequence[SetScores], group: str) -> dict[str, Tensor]:
    return {
        found.images: torch.from_numpy(found.values) for found in scores if found.group == group
    }


def _require_same_images(contestants: Sequence[Contestant]) -> None:
    first = contestants[0]
    for other in contestants[1:]:
        if _sizes(other) != _sizes(first):
            raise UserError(
                f"results: {first.name} and {other.name} were scored on other images "
                f"({_sizes(first)} and {_sizes(other)}); a paired test needs the same"
            )


def _sizes(contestant: Contestant) -> dict[str, int]:
    sizes = {"inliers": len(contestant.inliers)}
    for name, scores in contestant.outliers.items():
        sizes[name] = len(scores)
    return sizes


def _compared(
    contestants: Sequence[Contestant], attack: str, attacked: str, group: str, level: float
) -> Comparison:
    ranked = sorted(contestants, key=lambda contestant: -contestant.auroc)
    pairs = list(combinations(ranked, 2))
    tests = [_tested(first, second, level) for first, second in pairs]
    significant = {}
    adjusted = holm([test.p_value for test in tests])
    for (first, second), test, p_value in zip(pairs, tests, adjusted, strict=True):
        differs = p_value < 1 - level
        significant[first.name, second.name] = differs and test.difference > 0
        significant[second.name, first.name] = differs and test.difference < 0
    best, *rest = ranked
    with_best = [_tested(best, other, level) for other in rest]
    p_values = [1.0, *holm([test.p_value for test in with_best])]
    standings = []
    for contestant, p_value in zip(ranked, p_values, strict=True):
        low, high = contestant.interval(level)
        standing = Standing(
            name=contestant.name,
            auroc=contestant.auroc,
            low=low,
            high=high,
            difference=contestant.auroc - best.auroc,
            p_value=p_value,
            wins=sum(significant.get((contestant.name, other.name), False) for other in ranked),
            losses=sum(significant.get((other.name, contestant.name), False) for other in ranked),
            is_best=p_value >= 1 - level,
        )
        standings.append(standing)
    return Comparison(
        attack, attacked, group, tuple(best.outliers), len(best.inliers), level,
        tuple(standings), significant,
    )  # fmt: skip


def _tested(first: Contestant, second: Contestant, level: float) -> Difference:
    outliers = [[contestant.outliers[name] for name in first.outliers]
                for contestant in (first, second)]  # fmt: skip
    return delong_test([first.inliers, second.inliers], outliers, level)


@dataclass(frozen=True)
class SeedStanding:
    """A recipe's AUROC over its checkpoints, and whether it differs from the best recipe's.

    p_value: Welch's test over the checkpoints, adjusted for the number of recipes (Holm).
    """

    name: str
    checkpoints: int
    mean: float
    deviation: float
    p_value: float
    is_best: bool


def over_seeds(
    data: ReportData, attacked: str, level: float
) -> dict[tuple[str, str, str], list[SeedStanding]]:
    """Return recipes' standings by attack, group and detector, the best first.

    Training differs from seed to seed by more than the draw of test images shows, so methods are
    compared over seeds (Welch 1947). With fewer than two checkpoints there is no test.
    """
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for summary in data.results.summary:
        if summary.detector is None or summary.attacked != attacked or not _is_mean(summary):
            continue
        key = (summary.attack, str(summary.group), summary.detector)
        aurocs = [
            row.auroc
            for row in data.means
            if row.model in summary.models
            and (row.attack, row.group, row.detector) == key
            and row.attacked == attacked
        ]
        values.setdefault(key, {})[summary.recipe] = aurocs
    return {key: _over_seeds(recipes, level) for key, recipes in values.items() if len(recipes) > 1}


def _is_mean(summary: Summary) -> bool:
    return summary.ood == summary.group


def _over_seeds(recipes: Mapping[str, Sequence[float]], level: float) -> list[SeedStanding]:
    ranked = sorted(recipes, key=lambda recipe: -fmean(recipes[recipe]))
    best = recipes[ranked[0]]
    p_values = [
        float(ttest_ind(best, recipes[name], equal_var=False).pvalue) for name in ranked[1:]
    ]
    # Two recipes without any deviation: equal means are equal, others differ.
    p_values = [value if value == value else 1.0 for value in p_values]
    standings = []
    for name, p_value in zip(ranked, [1.0, *holm(p_values)], strict=True):
        aurocs = recipes[name]
        standings.append(
            SeedStanding(
                name, len(aurocs), fmean(aurocs), stdev(aurocs), p_value, p_value >= 1 - level
            )
        )
    return standings


@dataclass(frozen=True)
class DetectorStanding:
    """A detector's AUROC over a recipe's checkpoints, and how it differs from the best detector's.

    difference, low, high: to the best on the same networks, with its interval. p_value: that there
    is none, by the paired t-test over the checkpoints, adjusted for the number of detectors (Holm).
    """

    name: str
    checkpoints: int
    mean: float
    deviation: float
    difference: float
    low: float
    high: float
    p_value: float
    is_best: bool


def detectors_over_seeds(
    data: ReportData, attacked: str, level: float
) -> dict[tuple[str, str], list[DetectorStanding]]:
    """Return the standings of detectors by recipe and group of OOD sets, the best first.

    Each checkpoint counts with the attack that leaves a detector the lowest mean AUROC. Detectors
    score the same networks, so what differs between networks does not blur their comparison.
    Detectors that lack numbers of a checkpoint are left out.
    """
    found = {}
    for recipe, models in data.recipes.items():
        for group in data.groups:
            values = {}
            for detector in data.detectors:
                aurocs = [_lowest(data, model, detector, group, attacked) for model in models]
                complete = [auroc for auroc in aurocs if auroc is not None]
                if len(complete) == len(models):
                    values[detector] = complete
            if len(values) > 1 and len(models) > 1:
                found[recipe, group] = _detectors_over_seeds(values, level)
    return found


def _lowest(data: ReportData, model: str, detector: str, group: str, attacked: str) -> float | None:
    rows = data.means_of(model, detector, group)
    return min((row.auroc for row in rows if row.attacked == attacked), default=None)


def _detectors_over_seeds(
    values: Mapping[str, Sequence[float]], level: float
) -> list[DetectorStanding]:
    ranked = sorted(values, key=lambda detector: -fmean(values[detector]))
    best = values[ranked[0]]
    changes = {}
    p_values = []
    for detector in ranked[1:]:
        # In pairs, checkpoint by checkpoint.
        differences = [own - first for own, first in zip(values[detector], best, strict=True)]
        change = fmean(differences)
        low = high = change
        p_value = 1.0 if change == 0 else 0.0
        if stdev(differences) > 0:
            test = ttest_1samp(differences, 0.0)
            low, high = map(float, test.confidence_interval(level))
            p_value = float(test.pvalue)
        changes[detector] = (change, low, high)
        p_values.append(p_value)
    standings = []
    for detector, p_value in zip(ranked, [1.0, *holm(p_values)], strict=True):
        aurocs = values[detector]
        change_of = changes.get(detector, (0.0, 0.0, 0.0))
        standings.append(
            DetectorStanding(
                detector, len(aurocs), fmean(aurocs), stdev(aurocs), *change_of, p_value,
                p_value >= 1 - level,
            )
        )  # fmt: skip
    return standings
