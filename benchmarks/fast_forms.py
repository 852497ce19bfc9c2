"""Robust AUROC per training minute: cheaper attacks in ALOE's training, under several budgets.

    python benchmarks/fast_forms.py --folder runs/fast_forms

Runs `configs/studies/fast_forms_16.yaml` and `fast_forms_32.yaml` once for each number of minutes
and writes a page with the frontiers. What is trained or evaluated is kept in `--folder`; the same
command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from page import ROOT, table, write_page

from robust_ood.cli import main as robust_ood
from robust_ood.cli.study_file import Study, read_study
from robust_ood.cli.study_runs import StudyFolder
from robust_ood.evaluation import Results
from robust_ood.reporting.figures.canvas import gridlines, legend, look, panels, style
from robust_ood.reporting.numbers import rate
from robust_ood.reporting.recipes import choose_folders, read_recipes
from robust_ood.reporting.reference import Standing, against_reference

STUDIES = ROOT / "configs/studies"
LEVEL = 0.95

Standings = dict[tuple[str, float], dict[str, Standing]]
"""By group of OOD sets and minutes, each method's."""


@dataclass
class Frontier:
    """What was measured at one radius.

    lengths: steps of each method, by minutes. accuracies: the smallest clean one of its networks;
    one that only guesses has an AUROC of about .5, whatever the attack.
    """

    radius: int
    study: Study
    standings: Standings = field(default_factory=dict)
    lengths: dict[float, dict[str, str]] = field(default_factory=dict)
    accuracies: dict[float, dict[str, float]] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        """The groups of OOD sets."""
        return list(dict.fromkeys(group for group, _ in self.standings))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="of all runs; the same command continues"
    )
    parser.add_argument("--radii", type=int, nargs="+", default=[16, 32], help="times 255")
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--output", type=Path, default=Path("docs/results/fast_forms.md"))
    options = parser.parse_args()
    frontiers = []
    for radius in options.radii:
        path = STUDIES / f"fast_forms_{radius}.yaml"
        frontier = Frontier(radius, read_study(path))
        for minutes in options.minutes:
            code = _measure(frontier, path, minutes, options.folder / str(radius))
            if code:
                return code
        frontiers.append(frontier)
    picture = options.output.with_suffix(".svg")
    _draw(frontiers, options.minutes, picture)
    write_page(options.output, "Cheaper attacks in training", _lines(frontiers, picture.name))
    return 0


def _measure(frontier: Frontier, path: Path, minutes: float, folder: Path) -> int:
    """Run a study under one budget, note what came out, and return the exit code."""
    runs = folder / f"{minutes:g}"
    code = robust_ood(["study", str(_written(path, minutes, folder)), "--report", "false",
                       "--output", str(runs)])  # fmt: skip
    if code:
        return code
    frontier.lengths[minutes] = dict(_lengths(runs, frontier.study, minutes))
    frontier.accuracies[minutes] = {
        name: _smallest_accuracy(runs / name / "results") for name in frontier.study.methods
    }
    for group, methods in _standings(runs, frontier.study).items():
        frontier.standings[group, minutes] = methods
    return 0


def _written(study: Path, minutes: float, folder: Path) -> Path:
    """Write the study with another budget; return its file."""
    settings = yaml.safe_load(study.read_text())
    settings["budget"]["minutes"] = minutes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{minutes:g}.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def _lengths(folder: Path, study: Study, minutes: float) -> Iterator[tuple[str, str]]:
    """Yield each method with its number of steps."""
    budget = replace(study.budget, minutes=minutes)
    runs = StudyFolder(folder, replace(study, budget=budget), None)
    for name, method in study.methods.items():
        length = runs.lengths(method)
        assert length is not None
        warm = f"{length.warm_steps:,} + " if length.warm_steps else ""
        yield name, f"{warm}{length.steps:,}"


def _smallest_accuracy(folder: Path) -> float:
    """Return the smallest clean accuracy of a method's networks."""
    rows = Results.read(folder).classification
    return min(row.accuracy for row in rows if row.attack == "none")


def _standings(folder: Path, study: Study) -> dict[str, dict[str, Standing]]:
    results = [folder / name / "results" for name in study.methods]
    data = read_recipes(choose_folders(results, {}))
    standings = {}
    for comparison in against_reference(data, study.reference, "both", LEVEL):
        standings[comparison.group] = {row.name: row for row in comparison.standings}
    return standings


def _lines(frontiers: list[Frontier], picture: str) -> Iterator[str]:
    study = frontiers[0].study
    radii = " and ".join(f"{frontier.radius}/255" for frontier in frontiers)
    yield (
        f"AUROC of MSP at Linf {radii} with both sides attacked, mean and deviation of "
        f"{len(study.seeds)} seeds, against the seconds of one core that a network was trained "
        f"for. {study.reference} is the reference; bold is better than it, and an asterisk worse, "
        "with Holm's correction within a column. OE is what each of the others begins with. A "
        "network that only guesses, as its accuracy shows, has an AUROC of about .5 whatever the "
        "attack."
    )
    yield ""
    yield f"![Attacked AUROC against training seconds]({picture})"
    yield ""
    for frontier in frontiers:
        yield from _tables(frontier)


def _tables(frontier: Frontier) -> Iterator[str]:
    budgets = list(frontier.lengths)
    header = ["attack in training", *(f"{60 * minutes:g} s" for minutes in budgets)]
    names = list(frontier.study.methods)
    for group in frontier.groups:
        yield f"## {group.capitalize()} OOD, {frontier.radius}/255"
        yield ""
        rows = []
        for name in names:
            cells = [_cell(frontier.standings[group, minutes][name]) for minutes in budgets]
            rows.append([name, *cells])
        yield from table(header, rows)
    yield f"## Smallest clean accuracy of the seeds, {frontier.radius}/255"
    yield ""
    rows = []
    for name in names:
        rows.append([name, *(rate(frontier.accuracies[minutes][name]) for minutes in budgets)])
    yield from table(header, rows)
    yield f"## Steps, {frontier.radius}/255"
    yield ""
    rows = [[name, *(frontier.lengths[minutes][name] for minutes in budgets)] for name in names]
    yield from table(header, rows)


def _cell(standing: Standing) -> str:
    deviation = "" if standing.deviation is None else f" ± {rate(standing.deviation)}"
    text = f"{rate(standing.mean)}{deviation}"
    marks = {"better": f"**{text}**", "worse": f"{text} *"}
    return marks.get(standing.verdict, text)


def _draw(frontiers: list[Frontier], minutes: list[float], path: Path) -> None:
    with style():
        drawing, axes = panels(len(frontiers), len(frontiers[0].groups), height=3.0)
        for row, frontier in zip(axes, frontiers, strict=True):
            for axis, group in zip(row, frontier.groups, strict=True):
                _draw_group(axis, frontier, group, minutes)
        legend(drawing, axes[0, 0], columns=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def _draw_group(axis: Any, frontier: Frontier, group: str, minutes: list[float]) -> None:
    seconds = [60 * number for number in minutes]
    # Standings are ranked, each group in its own order; the look is of the method.
    for index, name in enumerate(frontier.study.methods):
        rows = [frontier.standings[group, number][name] for number in minutes]
        means = [row.mean for row in rows]
        deviations = [row.deviation or 0 for row in rows]
        axis.errorbar(seconds, means, deviations, label=name, capsize=2, **look(index))
    axis.set_title(f"{group} OOD, {frontier.radius}/255")
    axis.set_xscale("log", base=2)
    axis.set_xticks(seconds, [f"{number:g}" for number in seconds])
    axis.set_xlabel("seconds of training on one core")
    axis.set_ylabel("AUROC, both sides attacked")
    axis.set_ylim(0, 1)
    gridlines(axis)


if __name__ == "__main__":
    raise SystemExit(main())
