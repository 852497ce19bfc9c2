"""`robust-ood encoder-attack`: OOD images that a network encodes like in-distribution ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from robust_ood import detectors, reporting
from robust_ood.attacks.encoder import EncoderAttack
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.bounds import check_name
from robust_ood.cli.configs import with_includes
from robust_ood.cli.encoder_settings import (
    as_list,
    parser,
    read_attack,
    read_matchings,
    with_detectors,
)
from robust_ood.cli.evaluate_checks import choose_device
from robust_ood.cli.interrupts import STOPPED, stopped_by_signals
from robust_ood.cli.messages import user_errors
from robust_ood.cli.networks import find_parts, load, name_of
from robust_ood.cli.output import check_writable
from robust_ood.cli.preconditions import check_classes
from robust_ood.cli.presentation import command_line
from robust_ood.cli.processes import check_processes, is_first
from robust_ood.cli.quiet import quiet
from robust_ood.data import ImageSet, OODData
from robust_ood.data.limits import limited
from robust_ood.data.starts import load_starts
from robust_ood.errors import UserError
from robust_ood.evaluation import FolderStore, ProgressBar
from robust_ood.evaluation.encoder_results import EncoderResults
from robust_ood.evaluation.fitting import FitTask
from robust_ood.evaluation.matching import Matching, MatchTask, Pairs, PairScoreTask, plan
from robust_ood.evaluation.results import describe_environment
from robust_ood.evaluation.runner import Runner
from robust_ood.evaluation.scoring import Scorer
from robust_ood.evaluation.tasks import Model
from robust_ood.evaluation.terminal import describe_failure
from robust_ood.evaluation.text_tables import plain

__all__ = ["parser", "run"]


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked as far as that goes without data and networks."""

    parser: ArgumentParser
    config: Any
    settings: dict[str, Any]
    attack: EncoderAttack
    matchings: list[Matching]
    device: torch.device


@dataclass(frozen=True)
class Subjects:
    """The network with its detectors, and each kind of start with the inliers it is paired with."""

    data: OODData
    model: Model
    matchings: list[tuple[Matching, list[str]]]
    pairs: list[Pairs]


def run(arguments: Sequence[str]) -> int:
    """Attack, write the results and return the exit code.

    It is 0, 1 where a matching or a detector failed, or 130 after an interruption.
    """
    quiet()
    check_processes()
    request = parse(arguments)
    console = Console(quiet=not is_first())
    subjects = build(request)
    runner: Runner | None = None
    try:
        with stopped_by_signals(), ProgressBar(console) as progress:
            runner = Runner(FolderStore(request.config.output), progress)
            results = compute(request, subjects, runner)
    except KeyboardInterrupt:
        print("stopped: what is done is kept; the same command computes the rest", file=sys.stderr)
        return STOPPED
    if not is_first():
        return 0
    settings = {
        "command": command_line("encoder-attack", arguments),
        "config": request.settings,
        "cells_computed": runner.computed,
    }
    results.environment = describe_environment(settings)
    return finish(request, results, console)


def parse(arguments: Sequence[str]) -> Request:
    """Return what the user asked for.

    Raises: `UserError` for settings that are wrong whatever the data and networks are.
    """
    commands = parser()
    config = parse_arguments(commands, with_includes(arguments))
    settings = yaml.safe_load(commands.dump(config))
    for field in ("limit", "batch_size"):
        value = config[field]
        if value is not None and value < 1:
            raise UserError(f"{field}: expected a number of pairs >= 1, got {value}")
    if config.name is not None:
        check_name("name", config.name)
    attack = read_attack(config)
    matchings = read_matchings(config.match)
    if not as_list(config.starts):
        raise UserError("starts: none given; expected noise, a picture's path or a set")
    if not config.detectors:
        raise UserError("detectors: none given")
    if config.report:
        reporting.check_installed()
    device = choose_device(config.device)
    check_writable(config.output)
    return Request(commands, config, settings, attack, matchings, device)


def build(request: Request) -> Subjects:
    """Return networks, detectors and pairs.

    Raises: `UserError` for what does not fit together.
    """
    config = request.config
    with user_errors(dict(config.items())):
        built = request.parser.instantiate(config)
    data: OODData = built.data
    data.setup("test")
    inliers = data.inliers("test")
    if config.limit is not None and config.limit > len(inliers):
        raise UserError(
            f"limit: {config.limit} pairs, but {inliers.name} has {len(inliers)} images"
        )
    inliers = limited(inliers, config.limit)
    net = load(config.checkpoint, built.get("net"), config.key_map, averaged=config.averaged)
    net, _ = find_parts(net, inliers.input_shape)
    check_classes(net, data, "test")
    named = dict(detectors.build_all(config.detectors, net))
    matchings = with_detectors(request.matchings, named)
    model = Model(config.name or name_of(config.checkpoint, net), net, named)
    for matching, _ in matchings:
        matching.encoder(model)  # says what it cannot encode
    return Subjects(data, model, matchings, _read_pairs(request, data, inliers))


def _read_pairs(request: Request, data: OODData, inliers: ImageSet) -> list[Pairs]:
    config = request.config
    pairs: dict[str, Pairs] = {}
    for spec in as_list(config.starts):
        starts = load_starts(
            spec, data.root, inliers, len(inliers), size=data.size, seed=config.seed
        )
        if starts.name in pairs:
            raise UserError(
                f"starts: {starts.name!r} is duplicated; give one of them another name, as in "
                f"{{source: {starts.name}, name: {starts.name}-2}}"
            )
        pairs[starts.name] = Pairs(inliers, starts, config.batch_size)
    return list(pairs.values())


def compute(request: Request, subjects: Subjects, runner: Runner) -> EncoderResults:
    """Compute what the store lacks, and return the results."""
    model = subjects.model
    scorer = Scorer(request.device, request.config.batch_size)
    if not all(detector.fitted for detector in model.detectors.values()):
        fit = FitTask(model, subjects.data, scorer)
        runner.run([fit])
        fit.load(runner.store)  # leaves out what could not be fitted
    planned: list[tuple[list[MatchTask], list[str]]] = []
    for pairs in subjects.pairs:
        for matching, labels in subjects.matchings:
            if matching.of is not None and matching.of not in model.detectors:
                continue
            tasks = plan(model, [matching], request.attack, pairs, scorer)
            planned.append((tasks, [label for label in labels if label in model.detectors]))
    runner.run([task for tasks, _ in planned for task in tasks])
    results = EncoderResults()
    for tasks, labels in planned:
        if not labels or any(task.missing(runner.store) for task in tasks):
            continue  # the failure is reported
        scored = [PairScoreTask(task, labels, runner.store) for task in tasks]
        runner.run(scored)
        results.add(tasks, scored, runner.store)
    results.failures = list(runner.failures)
    return results


def finish(request: Request, results: EncoderResults, console: Console) -> int:
    """Write and print the results, end with the report, and return the exit code."""
    folder = request.config.output
    results.write(folder)
    if results.rows:
        console.print(_table(results))
    console.print(plain(f"wrote {folder / 'encoder_attack.json'} and {folder / 'pairs.npz'}"))
    for failure in results.failures:
        print(f"failed: {describe_failure(failure)}", file=sys.stderr)
    if request.config.report and results.rows:
        page = reporting.write_encoder_report(folder)
        console.print(plain(f"wrote {page}"))
    return 1 if results.failures else 0


def _table(results: EncoderResults) -> Table:
    """Return the rows: AUROC of inliers against the starts, and against the generated images."""
    title = "AUROC of inliers against start and generated images; MAPE of what was matched"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for name in ("start", "matched", "detector"):
        table.add_column(name)
    for name in ("start", "generated", "MAPE", "< 1 %"):
        table.add_column(name, justify="right")
    for row in results.rows:
        table.add_row(
            plain(row.start),
            plain(row.matched),
            plain(row.detector),
            f"{row.auroc_start:.3f}",
            f"{row.auroc:.3f}",
            f"{row.mape_mean:.2%}",
            f"{row.mape_below_1_percent:.0%}",
        )
    return table
