"""What to deploy: for each network or recipe a detector, its threshold, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from robust_ood.evaluation import Row
from robust_ood.reporting.doubts import is_doubted
from robust_ood.reporting.numbers import percent
from robust_ood.reporting.report_data import ReportData

COIN = 1.0  # the sum of both error shares of a detector that accepts at random
NOTABLE = 0.01  # a smaller difference between sums of error shares is not worth a sentence


class Fates(NamedTuple):
    """A detector's mean of each group of OOD sets, clean and under its strongest attack."""

    detector: str
    clean: list[Row]
    attacked: list[Row]

    @property
    def auroc(self) -> float:
        """The AUROC under attack, of the group where it is lowest."""
        return min(row.auroc for row in self.attacked)

    @property
    def errors(self) -> float:
        """Shares of rejected inliers and of accepted OOD under attack, of the worst group."""
        return max(1 - row.tpr_deployed + row.fpr_deployed for row in self.attacked)


def decision_sentences(data: ReportData) -> Iterator[str]:
    """Yield for each network or recipe which detector to deploy, where a threshold is known.

    That is the one with the highest AUROC under its strongest attack on both sides, in the group
    where this is lowest, so that one threshold serves all groups. Detectors with a sanity warning
    stand back: their attacked numbers may be too good.
    """
    for model in data.models:
        candidates = _candidates(data, model)
        if not candidates:
            continue
        ranked = sorted(candidates, key=lambda fates: -fates.auroc)
        trusted = [fates for fates in ranked if not is_doubted(data, model, fates.detector)]
        best = (trusted or ranked)[0]
        words = [
            f"{model}: {best.detector}, {_threshold(data, model, best)}.",
            f"Of the inliers it rejects {_rejected(data, best)}; {_accepted(data, best)}. Attacked "
            f"are both sides, by {_attacks(best)}.",
            *_reservations(best, ranked, trusted),
        ]
        yield " ".join(words)


def _candidates(data: ReportData, model: str) -> list[Fates]:
    """Return the detectors of a network that were attacked and have a known threshold."""
    groups = [group for group in data.groups if not group.startswith("full-")] or data.groups
    candidates = []
    for detector in data.detectors:
        fates = Fates(detector, [], [])
        for group in groups:
            attacked = data.worst(model, detector, group)
            clean = None if attacked is None else data.clean(attacked)
            if attacked is None or clean is None or attacked.threshold_set is None:
                continue
            fates.clean.append(clean)
            fates.attacked.append(attacked)
        if fates.attacked:
            candidates.append(fates)
    return candidates


def threshold_words(data: ReportData, row: Row) -> str:
    """Return the threshold of a network, or the range of those of a recipe's checkpoints."""
    values = data.thresholds_of_recipes.get((row.model, row.detector), [])
    if row.threshold is not None:
        values = [row.threshold]
    if not values:
        return ""
    low = f"{min(values):.4g}"
    high = f"{max(values):.4g}"
    if low == high:
        return f"threshold {low}"
    return f"thresholds {low} to {high}"


def _threshold(data: ReportData, model: str, fates: Fates) -> str:
    row = fates.attacked[0]
    words = threshold_words(data, row) or "its threshold"
    each = "each " if model in data.checkpoints else ""
    origin = str(row.threshold_set)
    if origin == row.id:
        origin += ", the tested images themselves: set it on others, with data.validation"
    return f"{words} ({each}accepts 95 % of {origin})"


def _rejected(data: ReportData, fates: Fates) -> str:
    # The strongest attack may differ between the groups: what is promised holds for the worst.
    clean = min(fates.clean, key=lambda row: row.tpr_deployed)
    attacked = min(fates.attacked, key=lambda row: row.tpr_deployed)
    return (
        f"{_share(data, clean, 'tpr_deployed', rejected=True)} clean and "
        f"{_share(data, attacked, 'tpr_deployed', rejected=True)} attacked"
    )


def _accepted(data: ReportData, fates: Fates) -> str:
    clauses: list[str] = []
    for clean, attacked in zip(fates.clean, fates.attacked, strict=True):
        verb = "" if clauses else "it accepts "
        clauses.append(
            f"of {clean.group} OOD {verb}{_share(data, clean, 'fpr_deployed')} clean and "
            f"{_share(data, attacked, 'fpr_deployed')} attacked"
        )
    return ", ".join(clauses)


def _share(data: ReportData, row: Row, metric: str, *, rejected: bool = False) -> str:
    """Return a share, with its deviation over checkpoints or its 95 % interval where known."""
    value = getattr(row, metric)
    text = percent(1 - value if rejected else value)
    deviation = data.deviation(row, metric)
    if deviation is not None:
        return f"{text} ± {percent(deviation)}"
    interval = data.interval(row, metric)
    if interval is None:
        return text
    low, high = interval
    if rejected:
        low, high = 1 - high, 1 - low
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def _attacks(fates: Fates) -> str:
    return " and ".join(dict.fromkeys(row.attack for row in fates.attacked))


def _reservations(best: Fates, ranked: Sequence[Fates], trusted: Sequence[Fates]) -> Iterator[str]:
    """Yield what speaks against the choice."""
    if best.errors >= COIN:
        yield (
            "Do not rely on it under this attack: it accepts at least as large a share of OOD as "
            "of inliers."
        )
    if not trusted:
        yield "A sanity warning casts doubt on it, as on every detector of this network."
    elif ranked[0] is not best:
        yield (f"{ranked[0].detector} has a higher AUROC, but a sanity warning casts doubt on it.")
    fewest = min(trusted or ranked, key=lambda fates: fates.errors)
    if fewest.errors < min(COIN, best.errors - NOTABLE):
        yield (
            f"At its own threshold, {fewest.detector} errs less under attack: it rejects "
            f"{percent(max(1 - row.tpr_deployed for row in fewest.attacked))} of the inliers and "
            f"accepts {percent(max(row.fpr_deployed for row in fewest.attacked))} of OOD."
        )
