"""The summary that a terminal shows: one page, whatever the number of detectors and attacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_lowercase

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from robust_ood.evaluation.results import Accuracy, Results
from robust_ood.evaluation.survivors import Outcome, Survivor, accurate, fitted, survivors
from robust_ood.evaluation.text_tables import counted, empty_table, plain, rate
from robust_ood.texts import radius_text

MOST_LINES = 24
"""Lines of detectors; with legend, accuracies and warnings, that is a page of about 40."""

_MOST_ACCURACIES = 6
_PAIRS = {"AUROC": "auroc", "FPR95": "fpr95", "ID": "tpr_deployed", "OOD": "fpr_deployed"}


def page(results: Results) -> Iterator[RenderableType]:
    """Yield what the page has, from top to bottom."""
    lines = survivors(results)
    shown = fitted(lines, MOST_LINES // 2 if _has_recipes(lines) else MOST_LINES)
    if shown:
        yield _legend(results, shown)
        yield _table(shown)
        if len(shown) < len(lines):
            yield plain(
                f"{len(shown)} of {len(lines)} lines: where they do not fit, each detector's worst "
                "group, and of these the best; --table full shows all"
            )
    saved = [record.saved for record in results.members if record.saved]
    if saved:
        yield plain(
            f"{100 * sum(saved) / len(saved):.0f} % of {counted(len(saved), 'attack')} by several "
            "members was spared: images that could no longer change a number (skip_settled)"
        )
    accuracies = accurate(results)
    if accuracies:
        yield _accuracies(accuracies[:_MOST_ACCURACIES])
        if len(accuracies) > _MOST_ACCURACIES:
            yield plain(f"and {len(accuracies) - _MOST_ACCURACIES} more in results.json")
    if results.shifted_classification:
        yield _shifted(results.shifted_classification)


def _has_recipes(lines: Sequence[Survivor]) -> bool:
    return any(line.checkpoints > 1 for line in lines)


def _legend(results: Results, lines: Sequence[Survivor]) -> str:
    thresholds = {row.threshold_set for row in results.rows if row.threshold_set is not None}
    where = "the threshold"
    if len(thresholds) == 1:
        where = f"the threshold set on {thresholds.pop()}"
    words = [
        "In each pair: clean, then under the worst attack on inliers and outliers.",
        "FPR95 is the share of OOD accepted when 95 % of ID is accepted.",
        f"ID, OOD: shares accepted at {where}.",
    ]
    if _has_recipes(lines):
        words.append("Of several checkpoints, means; +- is their standard deviation.")
    attacks = _attacks(lines)
    if attacks:
        words.append(f"Worst attacks: {'; '.join(attacks)}.")
    return str(plain(" ".join(words)))


def _attacks(lines: Sequence[Survivor]) -> list[str]:
    """Return letter, name and budget of each attack that was the worst of some line."""
    budgets = {}
    for line in lines:
        if line.worst is not None:
            record = line.worst.attack
            steps = f"{counted(record.steps, 'step')}, {counted(record.restarts, 'restart')}"
            budgets[record.attack] = f"{radius_text(record.norm, record.radius)}, {steps}"
    attacks = []
    for attack, letter in _letters(lines).items():
        mark = f"{letter}: " if len(budgets) > 1 else ""
        attacks.append(f"{mark}{attack} ({budgets[attack]})")
    return attacks


def _letters(lines: Sequence[Survivor]) -> dict[str, str]:
    """Return a letter, or more, for each worst attack; names leave no room for those of detectors.

    They are a to z, then aa, bb and so on.
    """
    letters: dict[str, str] = {}
    for line in lines:
        if line.worst is not None and line.worst.attack.attack not in letters:
            number = len(letters)
            letter = ascii_lowercase[number % 26] * (1 + number // 26)
            letters[line.worst.attack.attack] = letter
    return letters


def _table(lines: Sequence[Survivor]) -> Table:
    table = empty_table(
        "What survives (means over OOD sets)",
        ("network", "detector", "sets"),
        [f"{title}\nclean  att" for title in _PAIRS],
    )
    letters = _letters(lines)
    if len(letters) > 1:
        table.add_column("by")
    before = ("", "")
    for line in lines:
        if before[0] not in ("", line.subject):
            table.add_section()
        names = [line.subject, line.detector, line.group]
        if line.subject == before[0]:
            names[0] = ""
        if (line.subject, line.detector) == before:
            names[1] = ""
        before = (line.subject, line.detector)
        cells: list[Text | str] = [*map(plain, names)]
        cells += [_pair(line, metric) for metric in _PAIRS.values()]
        if len(letters) > 1 and line.worst is not None:
            cells.append(letters[line.worst.attack.attack])
        table.add_row(*cells)
        if line.checkpoints > 1:
            spreads = [_spread(line, metric) for metric in _PAIRS.values()]
            table.add_row("", f"+- of {line.checkpoints}", "", *spreads, style="dim")
    return table


def _pair(line: Survivor, metric: str) -> str:
    """Return a metric, clean and under the worst attack."""
    return f"{_value(line.clean, metric)} {_value(line.worst, metric)}"


def _value(outcome: Outcome | None, metric: str) -> str:
    return "    " if outcome is None else _shown(outcome.values, metric)


def _spread(line: Survivor, metric: str) -> str:
    """Return the deviations of a metric over the checkpoints, clean and under the worst attack."""
    texts = []
    for outcome in (line.clean, line.worst):
        texts.append("    " if outcome is None else _shown(outcome.deviations, metric))
    return " ".join(texts)


def _shown(values: Mapping[str, float], metric: str) -> str:
    # Summaries of older files may lack metrics.
    return rate(values[metric]) if metric in values else "    "


def _accuracies(lines: Sequence[Survivor]) -> Table:
    table = empty_table("Classification accuracy", ("network",), ("clean", "attacked"))
    table.add_column("worst attack on the classifier", overflow="fold")
    for line in lines:
        cells = []
        for outcome in (line.clean, line.worst):
            text = _value(outcome, "accuracy")
            if outcome is not None and outcome.deviations:
                text += f" +- {_shown(outcome.deviations, 'accuracy')}"
            cells.append(text)
        attack = ""
        if line.worst is not None:
            record = line.worst.attack
            attack = f"{record.attack}, {radius_text(record.norm, record.radius)}"
        table.add_row(plain(line.subject), *cells, plain(attack))
    return table


def _shifted(rows: Sequence[Accuracy]) -> Table:
    """Return the accuracy on shifted inliers, clean and under the worst attack."""
    titles = ("network", "shifted inliers")
    table = empty_table("Accuracy on shifted inliers", titles, ("clean", "attacked"))
    clean: dict[tuple[str, str], float] = {}
    worst: dict[tuple[str, str], float] = {}
    for row in rows:
        line = (row.model, row.id)
        if row.attack == "none":
            clean[line] = row.accuracy
        else:
            worst[line] = min(row.accuracy, worst.get(line, 1.0))
    for line in list(clean)[:_MOST_ACCURACIES]:
        attacked = rate(worst[line]) if line in worst else ""
        table.add_row(plain(line[0]), plain(line[1]), rate(clean[line]), attacked)
    left_out = len(clean) - _MOST_ACCURACIES
    if left_out > 0:
        table.add_row(f"and {left_out} more in results.json", "", "", "")
    return table
