"""What robustness costs in classification accuracy, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robust_ood.evaluation import Accuracy
from robust_ood.reporting.numbers import percent, signed
from robust_ood.texts import radius_text


def accuracy_sentences(rows: Sequence[Accuracy], *, comparable: bool) -> list[str]:
    """Return a sentence on clean accuracy, and one on each budget of attacks.

    Args:
        rows: of all networks, clean and attacked.
        comparable: whether the networks were evaluated on the same images.
    """
    clean = [row for row in rows if row.attack == "none"]
    sentences = []
    if clean:
        sentences.append(_clean(clean, comparable=comparable))
    sentences += _attacked(rows)
    return sentences


def _clean(rows: Sequence[Accuracy], *, comparable: bool) -> str:
    """Say how accurate each network is, and how far behind the most accurate one."""
    best = max(rows, key=lambda row: row.accuracy)
    clauses = []
    for row in rows:
        text = f"{row.model} {percent(row.accuracy)}"
        if comparable and row.accuracy < best.accuracy:
            points = signed(100 * (row.accuracy - best.accuracy), 1)
            text += f" ({points} points against {best.model}, the most accurate)"
        clauses.append(text)
    return f"Classification accuracy on clean images: {'; '.join(clauses)}."


def _attacked(rows: Sequence[Accuracy]) -> Iterator[str]:
    """Yield what is left of accuracy at each budget, so that no two radii are compared."""
    budgets: dict[tuple[str, float], dict[str, Accuracy]] = {}
    for row in rows:
        if row.attack == "none":
            continue
        lowest = budgets.setdefault((row.norm, row.radius), {})
        if row.model not in lowest or row.accuracy < lowest[row.model].accuracy:
            lowest[row.model] = row
    for (norm, radius), lowest in sorted(budgets.items()):
        clauses = []
        for model, row in lowest.items():
            clauses.append(f"{model} {percent(row.accuracy)} ({row.attack})")
        size = radius_text(norm, radius)
        yield (
            f"Classification accuracy under the strongest attack on the classifier within {size}: "
            f"{'; '.join(clauses)}."
        )
