"""`robust-ood compare`: which detectors and networks differ by more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.output import check_file
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.report_command import RECIPES_HELP, check_folders
from robust_ood.errors import UserError, unknown_name
from robust_ood.reporting.doubts import is_doubted
from robust_ood.reporting.formats import FORMATS, PlainTable
from robust_ood.reporting.numbers import rate, signed
from robust_ood.reporting.recipes import choose_folders, parse_recipes, read_recipes
from robust_ood.reporting.reference import against_reference, reference_table
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.significance import (
    ATTACKED,
    Comparison,
    DetectorStanding,
    SeedStanding,
    attacked_title,
    comparisons,
    detectors_over_seeds,
    over_seeds,
    p_value_text,
)
from robust_ood.texts import printable
from robust_ood.writing import replace_file

_DOUBTED = (
    "sanity warning: an attack may have failed for another reason than a robust detector, so the "
    "number may be too good;\n`robust-ood report` says which signs there are."
)


def parser() -> CommandParser:
    """Return the parser of the compare command."""
    parser = CommandParser(
        prog="robust-ood compare",
        description="Test which detectors and networks differ on the same images (DeLong), and "
        "which recipes (Welch) and which detectors of a recipe (paired t-test) differ over "
        "checkpoints. What is in bold, or marked by *, is not significantly worse than the best. "
        "With --reference, recipes and networks are tested against one of them (paired bootstrap "
        "over images, and variance over seeds).",
    )
    parser.add_argument(
        "results", type=Path, nargs="*", help="folders with a results.json and its store"
    )
    parser.add_argument("--recipes", type=str, nargs="+", default=[], help=RECIPES_HELP)
    parser.add_argument(
        "--detectors",
        type=str,
        nargs="+",
        default=[],
        help="compare these detectors only, such as those without a sanity warning (default: all)",
    )
    parser.add_argument(
        "--attacked",
        type=Literal["none", "in", "out", "both"],
        default="both",
        help="whose scores are compared: none (clean), in (inliers attacked), out, both",
    )
    parser.add_argument(
        "--level", type=float, default=0.95, help="confidence of tests and intervals, in (0, 1)"
    )
    parser.add_argument(
        "--reference",
        type=str | None,
        default=None,
        help="a recipe or network: test all others against it, over test images and seeds, instead "
        "of against the best",
    )
    parser.add_argument(
        "--matrix", type=bool, default=False, help="also who beats whom, pair by pair"
    )
    parser.add_argument(
        "--format",
        type=Literal["text", "markdown", "latex", "csv"],
        default="text",
        help="text, markdown, latex (booktabs) or csv",
    )
    parser.add_argument(
        "--output", type=Path | None, default=None, help="a file (default: print the tables)"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Compare, and return the exit code."""
    config = parse_arguments(parser(), arguments)
    if not 0 < config.level < 1:
        raise UserError(f"level: {config.level}; accepted: a share in (0, 1)")
    recipes = parse_recipes(config.recipes)
    check_folders(config.results, recipes)
    if config.output is not None:
        check_file(config.output)
    data = read_recipes(choose_folders(config.results, recipes))
    if config.detectors:
        data = _only(data, config.detectors)
    tables = _tables(data, config)
    if not tables:
        raise UserError(
            "results: nothing to compare; expected scores of two or more networks or detectors "
            f"with --attacked {config.attacked}"
        )
    text = "\n".join(map(FORMATS[config.format], tables))
    if config.format == "text" and " (sanity warning)" in text:
        text += f"\n{_DOUBTED}\n"
    if config.output is None:
        print(printable_lines(text), end="")
    else:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(config.output, text)
        print(printable(f"wrote {config.output}"))
    return 0


def _only(data: ReportData, detectors: Sequence[str]) -> ReportData:
    """Return the results of these detectors."""
    for detector in detectors:
        if detector not in data.detectors:
            raise unknown_name("detectors", detector, data.detectors)
    results = data.results
    rows = [row for row in results.rows if row.detector in detectors]
    summary = [record for record in results.summary if record.detector in (None, *detectors)]
    return replace(data, results=replace(results, rows=rows, summary=summary))


def _tables(data: ReportData, config: Any) -> list[PlainTable]:
    tables: list[PlainTable] = []
    if config.reference is not None:
        for comparison in against_reference(data, config.reference, config.attacked, config.level):
            tables.append(reference_table(comparison))
        return tables
    for subject, standings in over_seeds(data, config.attacked, config.level).items():
        tables.append(_seeds(subject, config.attacked, standings))
    for recipe_and_group, ranked in detectors_over_seeds(
        data, config.attacked, config.level
    ).items():
        tables.append(_detectors(data, recipe_and_group, config, ranked))
    for ranking in comparisons(data, config.attacked, config.level):
        tables.append(_ranking(data, ranking))
        if config.matrix:
            tables.append(_matrix(ranking))
    return tables


def printable_lines(text: str) -> str:
    """Return a text of several lines as a terminal may show it."""
    return "\n".join(map(printable, text.split("\n")))


def _title(comparison: Comparison) -> str:
    return attacked_title(comparison.group, comparison.sets, comparison.attacked, comparison.attack)


def _ranking(data: ReportData, comparison: Comparison) -> PlainTable:
    level = f"{100 * comparison.level:g} %"
    lines = []
    bold = set()
    for place, standing in enumerate(comparison.standings):
        interval = f"{rate(standing.low)}\N{EN DASH}{rate(standing.high)}"
        beaten = f"{standing.wins} / {standing.losses}"
        to_best = ("", "")
        if place:
            to_best = (signed(standing.difference, 3), p_value_text(standing.p_value))
        model, _, detector = standing.name.rpartition(", ")
        name = standing.name + _doubt(data, model, detector, comparison.attacked)
        lines.append((name, rate(standing.auroc), interval, *to_best, beaten))
        if standing.is_best:
            bold.add(place)
    columns = ("network, detector", "AUROC", f"{level} interval", "to the best", "p (Holm)",
               "beats / beaten by")  # fmt: skip
    return PlainTable(_title(comparison), columns, tuple(lines), frozenset(bold))


def _matrix(comparison: Comparison) -> PlainTable:
    """Return who is significantly better (>) or worse (<) than whom, by places."""
    names = [standing.name for standing in comparison.standings]
    places = tuple(str(place) for place in range(1, len(names) + 1))
    lines = []
    for place, name in zip(places, names, strict=True):
        lines.append((f"{place}. {name}", *_relations(comparison, name, names)))
    title = f"Who beats whom (> better, < worse, = not told apart): {_title(comparison)}"
    return PlainTable(title, ("network, detector", *places), tuple(lines))


def _relations(comparison: Comparison, name: str, names: Sequence[str]) -> Iterator[str]:
    for other in names:
        if comparison.significant.get((name, other), False):
            yield ">"
        elif comparison.significant.get((other, name), False):
            yield "<"
        else:
            yield "" if name == other else "="


def _detectors(
    data: ReportData, subject: tuple[str, str], config: Any, standings: Sequence[DetectorStanding]
) -> PlainTable:
    recipe, group = subject
    under = "" if config.attacked == "none" else ", each under its strongest attack"
    title = f"Over checkpoints: detectors of {recipe}, {group} OOD, {ATTACKED[config.attacked]}"
    lines = []
    bold = set()
    for place, standing in enumerate(standings):
        to_best = ("", "", "")
        if place:
            interval = f"{signed(standing.low, 3)} to {signed(standing.high, 3)}"
            to_best = (signed(standing.difference, 3), interval, p_value_text(standing.p_value))
        lines.append((
            standing.name + _doubt(data, recipe, standing.name, config.attacked),
            str(standing.checkpoints), f"{rate(standing.mean)} ± {rate(standing.deviation)}",
            *to_best,
        ))  # fmt: skip
        if standing.is_best:
            bold.add(place)
    level = f"{100 * config.level:g} % interval"
    columns = ("detector", "checkpoints", "AUROC", "to the best", level, "p (paired t, Holm)")
    return PlainTable(title + under, columns, tuple(lines), frozenset(bold))


def _doubt(data: ReportData, model: str, detector: str, attacked: str) -> str:
    """Return what to write behind a name whose attacked numbers may be too good."""
    if attacked == "none" or not is_doubted(data, model, detector):
        return ""
    return " (sanity warning)"


def _seeds(
    subject: tuple[str, str, str], attacked: str, standings: Sequence[SeedStanding]
) -> PlainTable:
    attack, group, detector = subject
    under = "" if attack == "none" else f", {attack}"
    title = f"Over checkpoints: {detector}, {group} OOD, {ATTACKED[attacked]}{under}"
    lines = []
    bold = set()
    for place, standing in enumerate(standings):
        lines.append((
            standing.name, str(standing.checkpoints),
            f"{rate(standing.mean)} ± {rate(standing.deviation)}",
            p_value_text(standing.p_value) if place else "",
        ))  # fmt: skip
        if standing.is_best:
            bold.add(place)
    columns = ("recipe", "checkpoints", "AUROC", "p (Welch, Holm)")
    return PlainTable(title, columns, tuple(lines), frozenset(bold))
