"""The report's tables as plain data: what each cell shows, what it sorts by, and what its colour
means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from robust_ood.evaluation import Row
from robust_ood.evaluation.results import METRICS
from robust_ood.reporting.source import Source
from robust_ood.reporting.summary import CHANCE, percent, radius_text, rate

_STRONG = 0.5  # a difference of this size has the full colour


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number that it sorts by, further lines, and how it is marked.

    tint: of differences, -1 (worse) to 1 (better). chance: an AUROC below that of a coin. name: a
    row's header.
    """

    text: str
    value: float | None = None
    note: str = ""
    tint: float | None = None
    chance: bool = False
    name: bool = False


@dataclass(frozen=True)
class Table:
    """A table: columns are `(title, explanation)`; the first `names` of them name the row."""

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    heads: Sequence[tuple[str, int]] = field(default_factory=list)  # titles over several columns


def survival(source: Source) -> Table:
    """Return clean against attacked for each detector: the mean of each group under the strongest
    attack.
    """
    columns = [("Network", ""), ("Detector", "")]
    heads = [("", 2)]
    for group in source.groups:
        heads += [(f"{group} OOD: AUROC", 3), (f"{group} OOD: FPR95", 2)]
        columns += [
            ("clean", ""),
            ("attacked", ""),
            ("change", ""),
            ("clean", ""),
            ("attacked", ""),
        ]
    rows = []
    for model in source.models:
        for detector in source.detectors:
            cells = []
            for group in source.groups:
                worst = source.worst(model, detector, group)
                clean = (
                    source.clean(worst) if worst else _only_clean(source, model, detector, group)
                )
                cells += [
                    _auroc(source, clean),
                    _auroc(source, worst, with_attack=True),
                    _change(clean, worst),
                ]
                cells += [_fpr(source, clean), _fpr(source, worst)]
            if any(cell.text for cell in cells):
                rows.append([_name(model), _name(detector), *cells])
    return Table(
        "Detection, clean and under the strongest attack on inliers and outliers",
        columns,
        rows,
        heads,
    )


def by_attack(source: Source) -> list[Table]:
    """Return for each attack a table of every detector on every OOD set: clean, each side attacked,
    and both.
    """
    attacks = list(dict.fromkeys(row.attack for row in source.sets if row.attack != "none"))
    return [_of_attack(source, attack) for attack in attacks] or [_unattacked(source)]


def _of_attack(source: Source, attack: str) -> Table:
    found: dict[tuple[str, str, str, bool, str], dict[str, Row]] = {}
    for means, rows in ((False, source.sets), (True, source.means)):
        for row in rows:
            # The mean over a single set says nothing that the set does not.
            if row.attack == attack and not (means and source.is_single(row)):
                found.setdefault((row.model, row.detector, row.group, means, row.ood), {})[
                    row.attacked
                ] = row
    columns = [("Network", ""), ("Detector", ""), ("OOD set", ""), ("clean", ""), ("inliers", ""),
               ("outliers", ""), ("both", ""), ("change", ""), ("clean", ""), ("both", ""), ("change", "")]  # fmt: skip
    lines = []
    order = {name: index for index, name in enumerate([*source.models, *source.detectors])}
    for (model, detector, group, is_mean, ood), sides in sorted(
        found.items(), key=lambda item: (order[item[0][0]], order[item[0][1]])
    ):
        both = sides.get("both")
        clean = source.clean(next(iter(sides.values())))
        name = f"mean of {group}" if is_mean else ood
        attacked = [_auroc(source, sides.get(side)) for side in ("in", "out", "both")]
        names = [_name(text) for text in (model, detector, name)]
        lines.append(
            [*names, _auroc(source, clean), *attacked, _change(clean, both),
             _fpr(source, clean), _fpr(source, both), _change(clean, both, "fpr95", better=-1)]
        )  # fmt: skip
    first = next(row for row in source.sets if row.attack == attack)
    caption = f"{attack}: {budget(first)}, {first.steps} steps, {first.restarts} restart{'s' * (first.restarts != 1)}"
    return Table(
        caption,
        columns,
        lines,
        [("", 3), ("AUROC: clean, then attacked", 5), ("FPR95: clean, attacked", 3)],
    )


def _unattacked(source: Source) -> Table:
    columns = [("Network", ""), ("Detector", ""), ("OOD set", ""), ("AUROC", ""), ("FPR95", "")]
    lines = [
        [
            _name(row.model),
            _name(row.detector),
            _name(row.ood),
            _auroc(source, row),
            _fpr(source, row),
        ]
        for row in source.sets
    ]
    return Table("Without attack", columns, lines)


def accuracies(source: Source) -> Table:
    """Return the classification accuracy of each network, clean and under each attack."""
    rows = source.results.classification
    attacks = list(dict.fromkeys(row.attack for row in rows))
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        own = {row.attack: row for row in rows if row.model == model}
        cells = [
            Cell(percent(own[attack].accuracy), own[attack].accuracy, note=f"n = {own[attack].n:,}")
            if attack in own
            else Cell("")
            for attack in attacks
        ]
        lines.append([_name(model), *cells])
    columns = [
        ("Network", ""),
        *(("clean" if attack == "none" else attack, "") for attack in attacks),
    ]
    return Table("Share of test images classified correctly", columns, lines)


def metrics(source: Source) -> Table:
    """Return every metric of every set, clean and with both sides attacked."""
    columns = [
        ("Network", ""),
        ("Detector", ""),
        ("OOD set", ""),
        ("Attack", ""),
        *((name, "") for name in METRICS),
    ]
    lines = []
    for row in source.sets:
        if row.attacked in ("none", "both"):
            names = [_name(text) for text in (row.model, row.detector, row.ood)]
            attack = Cell("clean" if row.attack == "none" else row.attack)
            lines.append([*names, attack, *(_number(getattr(row, name)) for name in METRICS)])
    return Table("All metrics of all sets, clean and with both sides attacked", columns, lines)


def winners(source: Source) -> Table | None:
    """Return for how many images each member of an attack's suite was the strongest, where any
    attack has several.
    """
    accounts = [one for one in source.results.members if len(one.wins.keys() - {"clean"}) > 1]
    if not accounts:
        return None
    members = list(dict.fromkeys(name for one in accounts for name in one.wins))
    columns = [
        ("Network", ""),
        ("Detector", ""),
        ("Attack", ""),
        ("Images", ""),
        *((name, "") for name in members),
    ]
    lines = []
    for one in accounts:
        shares = [one.wins.get(name, 0) / one.n for name in members]
        names = [
            _name(one.model),
            _name(one.detector or "classifier"),
            Cell(one.attack),
            Cell(one.images),
        ]
        lines.append([*names, *(Cell(f"{100 * share:.0f} %", share) for share in shares)])
    return Table(
        "Share of images for which each member of the suite found the worst image", columns, lines
    )


def recipes(source: Source) -> Table | None:
    """Return mean and deviation over the checkpoints of a recipe, where there are several."""
    found = [
        one
        for one in source.results.summary
        if one.attacked in ("none", "both") and one.ood == one.group
    ]
    accuracy = [one for one in source.results.summary if one.detector is None]
    if not found and not accuracy:
        return None
    columns = [("Recipe", ""), ("Detector", ""), ("OOD", ""), ("Attack", ""), ("AUROC", "mean ± deviation"),
               ("FPR95", "mean ± deviation"), ("Accuracy", "mean ± deviation"), ("Checkpoints", "")]  # fmt: skip
    lines = []
    for one in [*found, *accuracy]:
        names = [
            Cell(one.recipe, name=True),
            Cell(one.detector or "classifier", name=True),
            Cell(one.group or ""),
        ]
        attack = Cell("clean" if one.attack == "none" else one.attack)
        cells = [_spread(one.mean, one.std, metric) for metric in ("auroc", "fpr95", "accuracy")]
        lines.append([*names, attack, *cells, Cell(str(len(one.models)), len(one.models))])
    return Table(
        "Mean and sample standard deviation over the checkpoints of one recipe", columns, lines
    )


def budget(row: Row) -> str:
    """Return norm and radius in words, an Linf radius in 255ths."""
    return radius_text(row.norm, row.radius)


def _spread(mean: dict[str, float], std: dict[str, float], metric: str) -> Cell:
    return (
        Cell(f"{mean[metric]:.3f} ± {std[metric]:.3f}", mean[metric])
        if metric in mean
        else Cell("")
    )


def _only_clean(source: Source, model: str, detector: str, group: str) -> Row | None:
    wanted = (model, detector, group, "none")
    return next(
        (r for r in source.means if (r.model, r.detector, r.group, r.attacked) == wanted), None
    )


def _name(text: str) -> Cell:
    return Cell(text, name=True)


def _number(value: float) -> Cell:
    return Cell(rate(value), value)


def _auroc(source: Source, row: Row | None, *, with_attack: bool = False) -> Cell:
    if row is None:
        return Cell("")
    interval = source.interval(row)
    note = f"{rate(interval[0])}\N{EN DASH}{rate(interval[1])}" if interval else ""
    if with_attack:
        note = "\n".join(part for part in (note, row.attack) if part)
    return Cell(rate(row.auroc), row.auroc, note, chance=row.auroc < CHANCE)


def _fpr(source: Source, row: Row | None) -> Cell:
    if row is None:
        return Cell("")
    interval = source.interval(row, "fpr95")
    return Cell(
        rate(row.fpr95),
        row.fpr95,
        f"{rate(interval[0])}\N{EN DASH}{rate(interval[1])}" if interval else "",
    )


def _change(
    clean: Row | None, attacked: Row | None, metric: str = "auroc", better: int = 1
) -> Cell:
    if clean is None or attacked is None:
        return Cell("")
    change = getattr(attacked, metric) - getattr(clean, metric)
    text = f"{change:+.3f}".replace("-", "\N{MINUS SIGN}")
    return Cell(text, change, tint=max(-1.0, min(1.0, better * change / _STRONG)))
