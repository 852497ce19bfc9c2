"""The table of accuracies on shifted inliers, beside those on the test set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from robust_ood.evaluation import Accuracy
from robust_ood.reporting.numbers import percent
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.tables import Table, TableCell, attack_name, names, titled

_SHIFTED_LEGEND = (
    "Share of images that the classifier gets right, clean and under attacks on the classifier, on "
    "the test set and on the inliers of another look (data.shifted) that have labels; higher is "
    "better. n: how many images. \N{PLUS-MINUS SIGN}: standard deviation over the checkpoints of a "
    "recipe."
)


def shifted_accuracies(data: ReportData) -> Table | None:
    """Return the accuracy on shifted inliers beside that on the test set; None without any.

    data: as it was read; the checkpoints of a recipe become their mean here.
    """
    shifted = data.results.shifted_classification
    models = {row.model for row in shifted}
    plain = [row for row in data.results.classification if row.model in models]
    subjects = {}
    for recipe, members in data.recipes.items():
        subjects.update(dict.fromkeys(members, recipe))
    # By network or recipe and set, then by attack: the accuracy of each checkpoint.
    lines: dict[tuple[str, str], dict[str, list[Accuracy]]] = {}
    for model in dict.fromkeys(row.model for row in plain):
        for row in [*plain, *shifted]:
            if row.model == model:
                line = lines.setdefault((subjects.get(model, model), row.id), {})
                line.setdefault(row.attack, []).append(row)
    if not lines:
        return None
    attacks = list(dict.fromkeys(row.attack for row in plain))
    rows = []
    for subject, line in lines.items():
        cells = [_accuracy_cell(line.get(attack, [])) for attack in attacks]
        rows.append([*names(*subject), *cells])
    columns = titled("Network", "Images", *map(attack_name, attacks))
    caption = "Accuracy on shifted inliers"
    return Table(caption, columns, rows, legend=_SHIFTED_LEGEND)


def _accuracy_cell(rows: Sequence[Accuracy]) -> TableCell:
    """Return the mean over checkpoints, with its deviation where there are several."""
    if not rows:
        return TableCell("")
    values = [row.accuracy for row in rows]
    mean = statistics.fmean(values)
    text = percent(mean)
    if len(values) > 1:
        text = f"{100 * mean:.1f} \N{PLUS-MINUS SIGN} {percent(statistics.stdev(values))}"
    return TableCell(text, mean, f"n = {rows[0].n:,}")
