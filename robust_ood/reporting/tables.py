"""The tables of a report as plain data: text, sort value and colour of each cell, and a legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from robust_ood.evaluation import Row
from robust_ood.evaluation.results import METRICS
from robust_ood.reporting.doubts import is_doubted
from robust_ood.reporting.numbers import percent, rate, signed
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.summary import CHANCE, spread
from robust_ood.texts import radius_text

FULL_COLOUR = 0.5  # a difference of this size has the full colour

BELOW_CHANCE = "\N{BLACK DOWN-POINTING SMALL TRIANGLE} marks an AUROC below chance (0.5)."
BETTER = "AUROC: higher is better; FPR95: lower is better."
COLOURS = "A change is orange where the attack made it worse, blue where better."
INTERVALS = "Small numbers: the 95 % interval, where there is one"

SURVIVAL_LEGEND = (
    "Means over the OOD sets of each group. “Attacked” is the attack with the lowest AUROC, on "
    f"inliers and outliers. {BETTER} {BELOW_CHANCE} {COLOURS} {INTERVALS}, and below the attacked "
    "AUROC the attack. A sanity warning says that a detector's attacked numbers may be too good."
)
ATTACK_LEGEND = (
    "Each line is one OOD set or the mean of a group. The columns say which images were attacked: "
    f"none (clean), inliers, outliers or both. {BETTER} {BELOW_CHANCE} {COLOURS} {INTERVALS}."
)
CLEAN_LEGEND = f"Each line is one OOD set. {BETTER} {BELOW_CHANCE} {INTERVALS}."
ACCURACY_LEGEND = (
    "Share of test images that the classifier gets right, clean and under attacks on the "
    "classifier with the same budgets; higher is better. n: how many images."
)
METRICS_LEGEND = (
    "Higher is better for auroc, aupr_in, aupr_out and tpr_deployed, lower for the others; "
    "Definitions, below, says what each metric is."
)
WINNERS_LEGEND = (
    "An attack that is a suite keeps, image by image, the worst that any member found; “clean” is "
    "an image that no member could worsen. The shares of a line add up to 100 %."
)
LOSSES_LEGEND = (
    "As in Fort 2022, Tables 1 to 5: the AUROC on clean images, and after a perturbation by 1/255 "
    "in Linf of outliers or of both sides, read off the curves. These are the images of the "
    f"curves, and not those of the other tables. Higher is better. {BELOW_CHANCE} {COLOURS}"
)
RECIPES_LEGEND = (
    "Mean ± sample standard deviation over the checkpoints of one recipe. Both sides are attacked. "
    "AUROC and accuracy: higher is better; FPR95: lower is better."
)


@dataclass(frozen=True)
class TableCell:
    """A cell: its text, the number that it sorts by, further lines, and how it is marked.

    tint: of differences, -1 (worse) to 1 (better). chance: an AUROC below chance. name: a header
    of the row.
    """

    text: str
    value: float | None = None
    note: str = ""
    tint: float | None = None
    chance: bool = False
    name: bool = False


@dataclass(frozen=True)
class Table:
    """A table. legend: what its numbers mean, shown before it. columns: titles and explanations.

    heads: titles that span several columns, with how many they span.
    """

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[TableCell]]
    heads: Sequence[tuple[str, int]] = field(default_factory=list)
    legend: str = ""

    def full_titles(self) -> list[str]:
        """Return each column's title with the title that spans it."""
        spanning: list[str] = []
        for head, span in self.heads or [("", len(self.columns))]:
            spanning += [head] * span
        titles = []
        for head, (title, _) in zip(spanning, self.columns, strict=True):
            titles.append(f"{head} {title}".strip())
        return titles


def survival(data: ReportData) -> Table:
    """Return group means for each detector, clean and under the strongest attack."""
    columns = titled("Network", "Detector")
    heads = [("", 2)]
    for group in data.groups:
        heads += [(f"{group} OOD: AUROC", 3), (f"{group} OOD: FPR95", 2)]
        columns += titled("clean", "attacked", "change", "clean", "attacked")
    rows = []
    for model in data.models:
        for detector in data.detectors:
            cells: list[TableCell] = []
            for group in data.groups:
                cells += _survival_cells(data, model, detector, group)
            if any(cell.text for cell in cells):  # else it failed on every group
                rows.append([*names(model), _detector(data, model, detector), *cells])
    caption = "Detection, clean and under the strongest attack on inliers and outliers"
    return Table(caption, columns, rows, heads, SURVIVAL_LEGEND + spread_words(data))


def _detector(data: ReportData, model: str, detector: str) -> TableCell:
    note = "sanity warning" if is_doubted(data, model, detector) else ""
    return TableCell(detector, note=note, name=True)


def _survival_cells(data: ReportData, model: str, detector: str, group: str) -> list[TableCell]:
    clean = _clean_mean(data, model, detector, group)
    worst = data.worst(model, detector, group)
    if worst is not None:
        # With several in-distributions, the clean mean has to be of the same one.
        clean = data.clean(worst)
    return [
        _auroc(data, clean),
        _auroc(data, worst, with_attack=True),
        _change(clean, worst),
        _fpr(data, clean),
        _fpr(data, worst),
    ]


def by_attack(data: ReportData) -> list[Table]:
    """Return a table for each attack: every detector and OOD set, each side attacked and both."""
    first_rows: dict[str, Row] = {}
    for row in data.sets:
        if row.attack != "none":
            first_rows.setdefault(row.attack, row)
    if not first_rows:
        return [_without_attack(data)]
    tables = []
    for row in first_rows.values():
        tables.append(_under_attack(data, row))
    return tables


def _under_attack(data: ReportData, row: Row) -> Table:
    """Return the table of the attack that a row names."""
    columns = titled("Network", "Detector", "OOD set")
    columns += titled("clean", "inliers", "outliers", "both", "change")
    columns += titled("clean", "both", "change")
    heads = [("", 3), ("AUROC: clean, then attacked", 5), ("FPR95: clean, attacked", 3)]
    lines = []
    for name, sides in _sides_by_subject(data, row.attack):
        both = sides.get("both")
        first = next(iter(sides.values()))
        clean = data.clean(first)
        line = names(first.model, first.detector, name)
        line.append(_auroc(data, clean))
        for side in ("in", "out", "both"):
            line.append(_auroc(data, sides.get(side)))
        line.append(_change(clean, both))
        line += [_fpr(data, clean), _fpr(data, both)]
        line.append(_change(clean, both, "fpr95", better=-1))
        lines.append(line)
    plural = "" if row.restarts == 1 else "s"
    caption = f"{row.attack}: {budget(row)}, {row.steps} steps, {row.restarts} restart{plural}"
    return Table(caption, columns, lines, heads, ATTACK_LEGEND + spread_words(data))


def _sides_by_subject(data: ReportData, attack: str) -> list[tuple[str, dict[str, Row]]]:
    """Return the rows of each network, detector and OOD set or mean, by attacked side."""
    sides: dict[tuple[str, str, str, str], dict[str, Row]] = {}
    for row in data.sets:
        if row.attack == attack:
            key = (row.model, row.detector, row.group, row.ood)
            sides.setdefault(key, {})[row.attacked] = row
    for row in data.means:
        # The mean over a single set says nothing that the set does not.
        if row.attack == attack and not data.is_single(row):
            key = (row.model, row.detector, row.group, f"mean of {row.group}")
            sides.setdefault(key, {})[row.attacked] = row
    models = data.models
    detectors = data.detectors
    ordered = sorted(sides, key=lambda key: (models.index(key[0]), detectors.index(key[1])))
    subjects = []
    for key in ordered:
        subjects.append((key[3], sides[key]))
    return subjects


def _without_attack(data: ReportData) -> Table:
    columns = titled("Network", "Detector", "OOD set", "AUROC", "FPR95")
    lines = []
    for row in data.sets:
        cells = [_auroc(data, row), _fpr(data, row)]
        lines.append([*names(row.model, row.detector, row.ood), *cells])
    return Table("Without attack", columns, lines, legend=CLEAN_LEGEND)


def accuracies(data: ReportData) -> Table:
    """Return the classification accuracy of each network, clean and under each attack."""
    rows = data.results.classification
    attacks = list(dict.fromkeys(row.attack for row in rows))
    lines = []
    by_model: dict[str, dict[str, TableCell]] = {}
    for row in rows:
        text = percent(row.accuracy)
        deviation = data.deviation(row, "accuracy")
        if deviation is not None:
            text = f"{100 * row.accuracy:.1f} ± {percent(deviation)}"
        cell = TableCell(text, row.accuracy, f"n = {row.n:,}")
        by_model.setdefault(row.model, {})[row.attack] = cell
    for model, cells in by_model.items():
        line = names(model)
        for attack in attacks:
            line.append(cells.get(attack, TableCell("")))
        lines.append(line)
    columns = titled("Network", *map(attack_name, attacks))
    caption = "Share of test images classified correctly"
    return Table(caption, columns, lines, legend=ACCURACY_LEGEND + spread_words(data))


def metrics(data: ReportData) -> Table:
    """Return every metric of every set, clean and with both sides attacked."""
    columns = titled("Network", "Detector", "OOD set", "Attack", *METRICS)
    lines = []
    for row in data.sets:
        if row.attacked not in ("none", "both"):
            continue
        line = names(row.model, row.detector, row.ood)
        line.append(TableCell(attack_name(row.attack)))
        for name in METRICS:
            value = getattr(row, name)
            line.append(TableCell(rate(value), value))
        lines.append(line)
    caption = "All metrics of all sets, clean and with both sides attacked"
    return Table(caption, columns, lines, legend=METRICS_LEGEND)


def winners(data: ReportData) -> Table | None:
    """Return how often each member of a suite was the strongest; None without such a suite."""
    records = []
    members: dict[str, None] = {}  # in order, each once
    for record in data.results.members:
        if len(record.wins.keys() - {"clean"}) > 1:
            records.append(record)
            members.update(dict.fromkeys(record.wins))
    if not records:
        return None
    columns = titled("Network", "Detector", "Attack", "Images", *members)
    lines = []
    for record in records:
        line = names(record.model, record.detector or "classifier")
        line += [TableCell(record.attack), TableCell(record.images)]
        for name in members:
            share = record.wins.get(name, 0) / record.n
            line.append(TableCell(f"{100 * share:.0f} %", share))
        lines.append(line)
    caption = "Share of images for which each member of the suite found the worst image"
    return Table(caption, columns, lines, legend=WINNERS_LEGEND)


def losses(data: ReportData) -> Table | None:
    """Return the loss of AUROC at Linf 1/255 that pictures of curves keep; None without any.

    Source: Fort 2022, Tables 1 to 5.
    """
    columns = titled("Network", "Detector", "OOD", "Attacked")
    columns += titled("AUROC before", "AUROC at 1/255", "change")
    lines = []
    for picture in data.drawn("curves"):
        # Pictures of older versions have none.
        for group, (before, after, change) in picture.about.get("loss_of_auroc", {}).items():
            line = names(picture.model, picture.subject, group)
            line.append(TableCell(picture.about.get("attacked", "both")))
            line += [plain_auroc(before), plain_auroc(after), _difference(change)]
            lines.append(line)
    if not lines:
        return None
    caption = "Loss of AUROC at a perturbation of Linf 1/255"
    return Table(caption, columns, lines, legend=LOSSES_LEGEND)


def recipes(data: ReportData) -> Table | None:
    """Return mean and deviation over the checkpoints of a recipe; None without several."""
    detection = []
    classification = []
    for record in data.results.summary:
        if record.attacked in ("none", "both") and record.ood == record.group:
            detection.append(record)
        if record.detector is None:
            classification.append(record)
    if not detection and not classification:
        return None
    columns = titled("Recipe", "Detector", "OOD", "Attack")
    for name in ("AUROC", "FPR95", "Accuracy"):
        columns.append((name, "mean ± deviation"))
    columns += titled("Checkpoints")
    lines = []
    for record in [*detection, *classification]:
        line = names(record.recipe, record.detector or "classifier")
        line += [TableCell(record.group or ""), TableCell(attack_name(record.attack))]
        for metric in ("auroc", "fpr95", "accuracy"):
            line.append(_spread(record.mean, record.std, metric))
        line.append(TableCell(str(len(record.models)), len(record.models)))
        lines.append(line)
    caption = "Mean and sample standard deviation over the checkpoints of one recipe"
    return Table(caption, columns, lines, legend=RECIPES_LEGEND)


def spread_words(data: ReportData) -> str:
    """Return what ± means, where rows are means over the checkpoints of a recipe."""
    if not data.checkpoints:
        return ""
    recipes = [f"{recipe}: {len(models)}" for recipe, models in data.checkpoints.items()]
    return f" ±: standard deviation over the checkpoints of a recipe ({', '.join(recipes)})."


def titled(*titles: str) -> list[tuple[str, str]]:
    """Return columns with these titles and without explanations."""
    return [(title, "") for title in titles]


def names(*texts: str) -> list[TableCell]:
    """Return cells that name a row."""
    return [TableCell(text, name=True) for text in texts]


def attack_name(attack: str) -> str:
    """Return an attack's name as tables show it."""
    return "clean" if attack == "none" else attack


def budget(row: Row) -> str:
    """Return norm and radius in words, an Linf radius in 255ths."""
    return radius_text(row.norm, row.radius)


def interval_text(interval: tuple[float, float] | None) -> str:
    """Return an interval as tables show it, or nothing."""
    if interval is None:
        return ""
    low, high = interval
    return f"{rate(low)}\N{EN DASH}{rate(high)}"


def _spread(mean: dict[str, float], std: dict[str, float], metric: str) -> TableCell:
    if metric not in mean:
        return TableCell("")
    return TableCell(f"{mean[metric]:.3f} ± {std[metric]:.3f}", mean[metric])


def _clean_mean(data: ReportData, model: str, detector: str, group: str) -> Row | None:
    for row in data.means_of(model, detector, group):
        if row.attack == "none":
            return row
    return None


def _auroc(data: ReportData, row: Row | None, *, with_attack: bool = False) -> TableCell:
    if row is None:
        return TableCell("")
    notes = [interval_text(data.interval(row))]
    if with_attack:
        notes.append(row.attack)
    chance = row.auroc < CHANCE
    return TableCell(spread(data, row), row.auroc, _lines(notes), chance=chance)


def _fpr(data: ReportData, row: Row | None) -> TableCell:
    if row is None:
        return TableCell("")
    note = interval_text(data.interval(row, "fpr95"))
    return TableCell(spread(data, row, "fpr95"), row.fpr95, note)


def _change(
    clean: Row | None, attacked: Row | None, metric: str = "auroc", better: int = 1
) -> TableCell:
    if clean is None or attacked is None:
        return TableCell("")
    return _difference(getattr(attacked, metric) - getattr(clean, metric), better)


def plain_auroc(auroc: float) -> TableCell:
    """Return the cell of an AUROC without an interval."""
    return TableCell(rate(auroc), auroc, chance=auroc < CHANCE)


def _difference(change: float, better: int = 1) -> TableCell:
    """Return the cell of a change. better: 1 where an increase is better, else -1."""
    tint = max(-1.0, min(1.0, better * change / FULL_COLOUR))
    return TableCell(signed(change, 3), change, tint=tint)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(text for text in texts if text)
