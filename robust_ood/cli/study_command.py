"""`robust-ood study`: several methods and seeds, under one budget, to one comparison."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from robust_ood.callbacks.progress import duration
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.interrupts import STOPPED, stopped_by_signals
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.study_file import Study, StudyMethod, read_study
from robust_ood.cli.study_runs import StudyFolder
from robust_ood.errors import UserError, unknown_name
from robust_ood.texts import printable
from robust_ood.writing import replace_file


def parser() -> CommandParser:
    """Return the parser of the study command."""
    parser = CommandParser(
        prog="robust-ood study",
        description="Train methods with several seeds under one budget of minutes or steps, "
        "evaluate all networks alike, and compare the methods with one of them. The same command "
        "continues where it stopped.",
    )
    add = parser.add_argument
    add("study", type=Path, help="YAML file: methods, seeds, budget, train, evaluate, reference")
    add("--output", type=Path | None, default=None, help="folder (default: runs/NAME of the file)")
    add("--data.root", type=str | None, default=None, help="folder of the data")
    add("--methods", type=list[str] | None, default=None, help="only these of the study")
    add("--level", type=float, default=0.95, help="confidence of tests and intervals, in (0, 1)")
    add("--report", type=bool, default=True, help="end with report.html")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Train, evaluate and compare; return the exit code.

    It is 0, 1 where a run failed, 2 after a mistake in a method's settings, or 130 after an
    interruption.
    """
    config = parse_arguments(parser(), arguments)
    if not 0 < config.level < 1:
        raise UserError(f"level: {config.level}; accepted: a share in (0, 1)")
    study = read_study(config.study)
    chosen = _chosen(study, config.methods)
    output = config.output or Path("runs") / config.study.stem
    check_writable(output)
    folder = StudyFolder(output, study, config.data.root)
    folder.prepare()
    try:
        with stopped_by_signals():
            code = _measure(folder, chosen)
            if code:
                return code
            failed = _train(folder, chosen) + _evaluate(folder, chosen)
    except KeyboardInterrupt:
        print("stopped: what is done is kept; the same command does the rest", file=sys.stderr)
        return STOPPED
    finish(folder, config.level, config.report)
    return 1 if failed else 0


def _chosen(study: Study, names: Sequence[str] | None) -> list[StudyMethod]:
    """Return the methods that this call trains, and those that they begin with."""
    if names is None:
        return list(study.methods.values())
    for name in names:
        if name not in study.methods:
            raise unknown_name("methods", name, study.methods)
    return [method for name, method in study.methods.items() if name in names]


def _measure(folder: StudyFolder, methods: Sequence[StudyMethod]) -> int:
    """Find out the length of all trainings; return the exit code of a trial that failed."""
    needed = {method.name: method for method in methods}
    for method in methods:
        if method.warm_start is not None:
            first = method.warm_start.method
            needed[first] = folder.study.methods[first]
    # A method's warm start is as long as a share of the other method's training.
    for method in sorted(needed.values(), key=lambda method: method.warm_start is not None):
        if folder.lengths(method) is None:
            _say(f"{method.name}: a trial of a few steps")
            code = folder.measure(method)
            if code:
                print(
                    f"study: the trial of {method.name} failed; see {folder.of(method.name)}",
                    file=sys.stderr,
                )
                return code
        lengths = folder.lengths(method)
        assert lengths is not None
        warm = f" after {lengths.warm_steps} of its warm start" if lengths.warm_steps else ""
        _say(f"{method.name}: {lengths.steps} steps of {lengths.step:.3g} s{warm}")
    return 0


def _train(folder: StudyFolder, methods: Sequence[StudyMethod]) -> int:
    """Train what is not trained yet; return how many trainings failed."""
    failed = 0
    done = 0
    total = len(methods) * len(folder.study.seeds)
    # Seed by seed: whatever stops a study, its methods have been trained alike.
    for seed in folder.study.seeds:
        for method in methods:
            done += 1
            if folder.is_trained(method, seed):
                continue
            _say(f"[{done}/{total}] training {method.name}, seed {seed}")
            code = folder.train(method, seed)
            if code >= 128 or code < 0:
                raise KeyboardInterrupt
            if code:
                failed += 1
                print(f"study: {method.name}, seed {seed} failed", file=sys.stderr)
    return failed


def _evaluate(folder: StudyFolder, methods: Sequence[StudyMethod]) -> int:
    """Evaluate the trained networks; return how many evaluations failed."""
    failed = 0
    for method in methods:
        if not any(folder.is_trained(method, seed) for seed in folder.study.seeds):
            continue
        _say(f"evaluating {method.name}")
        code = folder.evaluate(method)
        if code >= 128 or code < 0:
            raise KeyboardInterrupt
        if code:
            failed += 1
            print(f"study: the evaluation of {method.name} failed", file=sys.stderr)
    return failed


def finish(folder: StudyFolder, level: float, report: bool) -> None:
    """Write and print the comparison of all methods that are evaluated, and write the report."""
    # Not with the other imports: a command that stops before does without.
    from robust_ood.reporting import write_report
    from robust_ood.reporting.formats import as_markdown, as_text
    from robust_ood.reporting.recipes import choose_folders, read_recipes
    from robust_ood.reporting.study_tables import budget_table, comparison_tables

    folders = []
    for name in folder.study.methods:
        if (folder.results(name) / "results.json").is_file():
            folders.append(folder.results(name))
    if not folders:
        raise UserError(f"output: {folder.folder} has no results to compare")
    data = read_recipes(choose_folders(folders, {}))
    tables = [budget_table(data, _efforts(folder))]
    tables += comparison_tables(data, folder.study.reference, level)
    replace_file(folder.folder / "comparison.md", "\n".join(map(as_markdown, tables)))
    for table in tables:
        for line in as_text(table).split("\n"):
            print(printable(line))
    _say(f"wrote {folder.folder / 'comparison.md'}")
    if report:
        _say(f"wrote {write_report(folders, folder.folder / 'report.html')}")


def _efforts(folder: StudyFolder) -> dict[str, tuple[str, str]]:
    """Return the steps and the measured minutes of each method's training."""
    efforts: dict[str, tuple[str, str]] = {}
    for name, method in folder.study.methods.items():
        lengths: Any = folder.lengths(method)
        seconds = list(folder.seconds(method))
        if lengths is not None and seconds:
            steps = f"{lengths.steps:,}"
            if lengths.warm_steps:
                steps = f"{lengths.warm_steps:,} + {steps}"
            efforts[name] = (steps, duration(fmean(seconds)))
    return efforts


def _say(text: str) -> None:
    print(printable(text), flush=True)
