"""Robust AUROC per training minute: cheaper attacks in ALOE's training, under several budgets.

    python benchmarks/fast_forms.py --folder runs/fast_forms

Runs `configs/studies/fast_forms.yaml` once for each number of minutes and writes a page with the
frontier. What is trained or evaluated is kept in `--folder`; the same command continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from page import ROOT, table, write_page

from robust_ood.cli import main as robust_ood
from robust_ood.cli.study_file import Study, read_study
from robust_ood.cli.study_runs import StudyFolder
from robust_ood.reporting.figures.canvas import gridlines, legend, look, panels, style
from robust_ood.reporting.numbers import rate
from robust_ood.reporting.recipes import choose_folders, read_recipes
from robust_ood.reporting.reference import Standing, against_reference

STUDY = ROOT / "configs/studies/fast_forms.yaml"
LEVEL = 0.95

Standings = dict[tuple[str, float], dict[str, Standing]]
"""By group of OOD sets and minutes, each method's."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="of all runs; the same command continues"
    )
    parser.add_argument("--minutes", type=float, nargs="+", default=[0.1, 0.2, 0.4, 0.8])
    parser.add_argument("--output", type=Path, default=Path("docs/results/fast_forms.md"))
    options = parser.parse_args()
    standings: Standings = {}
    lengths = {}
    study = read_study(STUDY)
    for minutes in options.minutes:
        folder = options.folder / f"{minutes:g}"
        code = robust_ood(["study", str(_written(minutes, options.folder)), "--report", "false",
                           "--output", str(folder)])  # fmt: skip
        if code:
            return code
        lengths[minutes] = dict(_lengths(folder, study, minutes))
        for group, methods in _standings(folder, study).items():
            standings[group, minutes] = methods
    picture = options.output.with_suffix(".svg")
    _draw(list(study.methods), standings, options.minutes, picture)
    write_page(options.output, "Cheaper attacks in training", _lines(study, standings, lengths,
                                                                     picture.name))  # fmt: skip
    return 0


def _written(minutes: float, folder: Path) -> Path:
    """Write the study with another budget; return its file."""
    settings = yaml.safe_load(STUDY.read_text())
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


def _standings(folder: Path, study: Study) -> dict[str, dict[str, Standing]]:
    results = [folder / name / "results" for name in study.methods]
    data = read_recipes(choose_folders(results, {}))
    standings = {}
    for comparison in against_reference(data, study.reference, "both", LEVEL):
        standings[comparison.group] = {row.name: row for row in comparison.standings}
    return standings


def _lines(
    study: Study, standings: Standings, lengths: dict[float, dict[str, str]], picture: str
) -> Iterator[str]:
    seeds = len(study.seeds)
    yield (
        f"AUROC of MSP at Linf 32/255 with both sides attacked, mean and deviation of {seeds} "
        f"seeds, against the seconds of one core that a network was trained for. {study.reference} "
        "is the reference; bold is better than it, and an asterisk worse, with Holm's correction "
        "within a column."
    )
    yield ""
    yield f"![Attacked AUROC against training seconds]({picture})"
    yield ""
    header = ["attack in training", *(f"{60 * minutes:g} s" for minutes in lengths)]
    for group in dict.fromkeys(group for group, _ in standings):
        yield f"## {group.capitalize()} OOD"
        yield ""
        rows = []
        for name in study.methods:
            cells = [_cell(standings[group, minutes][name]) for minutes in lengths]
            rows.append([name, *cells])
        yield from table(header, rows)
    yield "## Steps"
    yield ""
    rows = [[name, *(lengths[minutes][name] for minutes in lengths)] for name in study.methods]
    yield from table(header, rows)


def _cell(standing: Standing) -> str:
    deviation = "" if standing.deviation is None else f" ± {rate(standing.deviation)}"
    text = f"{rate(standing.mean)}{deviation}"
    marks = {"better": f"**{text}**", "worse": f"{text} *"}
    return marks.get(standing.verdict, text)


def _draw(names: list[str], standings: Standings, minutes: list[float], path: Path) -> None:
    # Standings are ranked, each group in its own order; the look is of the method.
    groups = list(dict.fromkeys(group for group, _ in standings))
    seconds = [60 * number for number in minutes]
    with style():
        drawing, axes = panels(1, len(groups), height=3.0)
        for axis, group in zip(axes[0], groups, strict=True):
            for index, name in enumerate(names):
                rows = [standings[group, number][name] for number in minutes]
                axis.errorbar(
                    seconds,
                    [row.mean for row in rows],
                    [row.deviation or 0 for row in rows],
                    label=name,
                    capsize=2,
                    **look(index),
                )
            axis.set_title(f"{group} OOD")
            axis.set_xscale("log", base=2)
            axis.set_xticks(seconds, [f"{number:g}" for number in seconds])
            axis.set_xlabel("seconds of training on one core")
            axis.set_ylabel("AUROC, both sides attacked")
            axis.set_ylim(0, 1)
            gridlines(axis)
        legend(drawing, axes[0, 0], columns=4)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
