"""Which detector of a recipe is the best over its checkpoints, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from robust_ood.reporting.doubts import is_doubted
from robust_ood.reporting.numbers import signed
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.significance import detectors_over_seeds, p_value_text

_LEVEL = 0.95
_MOST = 4  # detectors that a sentence names before it counts the others


def detector_sentences(data: ReportData) -> Iterator[str]:
    """Yield a sentence for each recipe and group: by how much the others are behind the best."""
    for (recipe, group), standings in detectors_over_seeds(data, "both", _LEVEL).items():
        best, *others = standings
        clauses = []
        for other in others[:_MOST]:
            verdict = "not told apart" if other.is_best else f"p {_equals(other.p_value)}"
            clauses.append(
                f"{other.name} {signed(other.difference, 3)} "
                f"({signed(other.low, 3)} to {signed(other.high, 3)}; {verdict})"
            )
        if len(others) > _MOST:
            clauses.append(f"{len(others) - _MOST} more behind")
        doubt = ""
        if is_doubted(data, recipe, best.name):
            doubt = "; but a sanity warning casts doubt on it"
        yield (
            f"{recipe}, {group} OOD, detectors over {best.checkpoints} checkpoints: {best.name} "
            f"has the highest AUROC under its strongest attack; behind it, with 95 % intervals "
            f"(paired t-test, Holm): {', '.join(clauses)}{doubt}."
        )


def _equals(p_value: float) -> str:
    text = p_value_text(p_value)
    return text if text.startswith("<") else f"= {text}"
