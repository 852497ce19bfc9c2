"""What the terminal shows: how far an evaluation is, and what survived, in 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from robust_ood.arguments import typed
from robust_ood.evaluation.one_page import page
from robust_ood.evaluation.results import Accuracy, Failure, Results, Row
from robust_ood.evaluation.text_tables import counted, empty_table, plain, rate
from robust_ood.texts import printable, radius_text

_FEW = 5  # warnings, failures and bounds of the page
_ATTACKED = {"none": "clean", "in": "inliers", "out": "outliers", "both": "both"}
_LEGEND = (
    "AUROC/FPR95 with clean images, attacked inliers, attacked outliers, and both attacked.\n"
    "FPR95 is the share of OOD accepted when 95 % of ID is accepted."
)


class Progress:
    """Told what is computed, in units of one clean score of one image; shows nothing."""

    def expect(self, work: float) -> None:
        """Add work to what is to be done; negative for work that turns out to be done already."""

    def begin(self, title: str) -> None:
        """Say what is computed next."""

    def done(self, work: float) -> None:
        """Say that so much work is done."""


class ProgressBar(Progress):
    """A bar with the time left, on a terminal only; it is gone when the block ends."""

    def __init__(self, console: Console) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # Clean passes and attacks differ in what they say of the time left.
            speed_estimate_period=300,
        )
        self._task = self._bar.add_task("reading", total=None)
        self._total = 0.0

    def __enter__(self) -> ProgressBar:
        if not self._bar.disable:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        # Older versions of rich end a bar that was never shown with an empty line.
        if not self._bar.disable:
            self._bar.stop()

    def expect(self, work: float) -> None:
        """Add work to what is to be done."""
        self._total += work
        self._bar.update(self._task, total=self._total)

    def begin(self, title: str) -> None:
        """Show what is computed next."""
        self._bar.update(self._task, description=printable(title))

    def done(self, work: float) -> None:
        """Move the bar."""
        self._bar.advance(self._task, work)


@typed
def print_results(results: Results, console: Console | None = None, *, full: bool = False) -> None:
    """Print one page of about 40 lines at 80 columns, or every table.

    The page has AUROC, FPR95 and the rates at the threshold, clean and under each detector's worst
    attack, accuracies, and the first warnings.

    Args:
        results: of an evaluation; the files beside them have everything.
        console: where to; standard output by default.
        full: print AUROC and FPR95 by attack, detector and OOD set, clean and with either side
            attacked, the accuracies under each attack, and all warnings.
    """
    console = console or Console()
    if full:
        _print_tables(results, console)
    else:
        for part in page(results):
            console.print(part, "", highlight=False, markup=False)
    brackets = _brackets(results.rows)
    if brackets.row_count and (full or brackets.row_count <= _FEW):
        console.print(brackets, "")
    warnings = list(map(printable, results.warnings))
    _print_notes(console, "warning:", "yellow", warnings, full=full)
    failures = list(map(describe_failure, results.failures))
    _print_notes(console, "failed:", "red", failures, full=full)


def _print_tables(results: Results, console: Console) -> None:
    """Print a table for each attack, the accuracies, and the means over checkpoints."""
    if results.rows:
        console.print(_LEGEND, "", highlight=False)
    for table in _detection_tables(results.rows):
        console.print(table, "")
    if results.classification:
        console.print(_accuracy("classification accuracy", results.classification))
    for name in dict.fromkeys(row.id for row in results.shifted_classification):
        shifted = [row for row in results.shifted_classification if row.id == name]
        console.print(_accuracy(f"classification accuracy, shifted inliers: {name}", shifted))
    if results.summary:
        console.print(_summary(results), "")


def _print_notes(
    console: Console, mark: str, colour: str, notes: Sequence[str], *, full: bool
) -> None:
    """Print warnings or failures; the page has the first few, and says how many it leaves out."""
    shown = notes if full else notes[:_FEW]
    for note in shown:
        console.print(Text.assemble((mark, colour), f" {note}"))
    if len(shown) < len(notes):
        left_out = len(notes) - len(shown)
        console.print(Text.assemble((mark, colour), f" {left_out} more in results.json"))


def _detection_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Yield a table for each attack, in the order of the config; without any, the clean one."""
    clean: dict[tuple[str, ...], Row] = {}
    by_attack: dict[str, list[Row]] = {}
    for row in rows:
        if row.attacked == "none":
            clean[_subject(row)] = row
        else:
            by_attack.setdefault(row.attack, []).append(row)
    if not by_attack:
        yield _detection("no attack", {subject: {"none": row} for subject, row in clean.items()})
    for attack, attacked in by_attack.items():
        lines: dict[tuple[str, ...], dict[str, Row | None]] = {}
        for row in attacked:
            line = lines.setdefault(_subject(row), {"none": clean.get(_subject(row))})
            line[row.attacked] = row
        first = attacked[0]
        budget = f"{counted(first.steps, 'step')}, {counted(first.restarts, 'restart')}"
        size = radius_text(first.norm, first.radius)
        yield _detection(f"attack {attack}: {size}, {budget}", lines)


def describe_failure(failure: Failure) -> str:
    """Return who failed, in what, and why, in one line."""
    subject = failure.model
    if failure.detector:
        subject += f", {failure.detector}"
    under = ""
    if failure.attack != "none":
        under = f" under {failure.attack}"
    return printable(f"{subject} ({failure.stage}{under}): {failure.error}")


def _subject(row: Row) -> tuple[str, ...]:
    return (row.model, row.detector, row.ood, row.group)


def _detection(title: str, lines: Mapping[tuple[str, ...], Mapping[str, Row | None]]) -> Table:
    table = empty_table(title, ("model", "detector", "OOD set"), list(_ATTACKED.values()))
    sets = _count_sets(lines)
    shown_model = ""
    shown_detector = ""
    for (model, detector, ood, group), cells in lines.items():
        count = sets[model, detector, group]
        is_mean = ood == group and count > 0
        if is_mean and count == 1:
            continue  # the mean of a single set
        if shown_model not in ("", model):
            table.add_section()
        names = [model, detector, f"mean of {group}" if is_mean else ood]
        if detector == shown_detector and model == shown_model:
            names[1] = ""
        if model == shown_model:
            names[0] = ""
        rates = [_cell(cells.get(attacked)) for attacked in _ATTACKED]
        table.add_row(*map(plain, names), *rates)
        shown_model = model
        shown_detector = detector
    return table


def _brackets(rows: Sequence[Row]) -> Table:
    """Return what is certified and what attacks leave, both sides perturbed."""
    table = empty_table(
        "AUROC with both sides perturbed: certified or guaranteed, attacked",
        ("model", "detector", "OOD set", "within"),
        ("bound", "attacked"),
    )
    for row in rows:
        # Means repeat what the sets say.
        if row.lower is None or row.attacked != "both" or row.ood == row.group:
            continue
        within = radius_text(row.norm, row.radius)
        table.add_row(
            *map(plain, (row.model, row.detector, row.ood, within)),
            f"{row.bound} {rate(row.lower)}",
            rate(row.auroc),
        )
    return table


def _count_sets(subjects: Iterable[tuple[str, ...]]) -> Counter[tuple[str, str, str]]:
    """Return how many sets each model, detector and group has, means left out."""
    sets: Counter[tuple[str, str, str]] = Counter()
    for model, detector, ood, group in subjects:
        # A group's mean is called like the group.
        if ood != group:
            sets[model, detector, group] += 1
    return sets


def _summary(results: Results) -> Table:
    table = empty_table(
        "mean +- standard deviation over the checkpoints of a recipe: "
        "AUROC (accuracy where no detector is)",
        ("recipe", "detector", "attack", "attacked", "OOD set"),
        ("",),
    )
    for line in results.summary:
        metric = "accuracy" if line.detector is None else "auroc"
        names = (line.recipe, line.detector or "", line.attack)
        table.add_row(
            *map(plain, names),
            _ATTACKED.get(line.attacked or "", ""),
            plain(line.ood or ""),
            f"{rate(line.mean[metric])} +- {rate(line.std[metric])}",
        )
    return table


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{rate(row.auroc)}/{rate(row.fpr95)}"


def _accuracy(title: str, rows: Sequence[Accuracy]) -> Table:
    table = empty_table(title)
    by_model: dict[str, dict[str, str]] = {}
    attacks: dict[str, None] = {}  # in order, each once
    for row in rows:
        by_model.setdefault(row.model, {})[row.attack] = rate(row.accuracy)
        attacks[row.attack] = None
    table.add_column("model")
    for attack in attacks:
        title = "clean" if attack == "none" else attack
        table.add_column(plain(title), justify="right")
    for model, rates in by_model.items():
        cells = [rates.get(attack, "") for attack in attacks]
        table.add_row(plain(model), *cells)
    return table
