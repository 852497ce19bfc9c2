"""`evaluate.py`: saved networks, their detectors and attacks through them, to tables and files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console
from torch import nn

from robust_ood import attacks, detectors
from robust_ood.attacks import Attack
from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.configs import with_includes
from robust_ood.cli.evaluate_checks import check_names, check_output, choose_device
from robust_ood.cli.interrupts import (
    STOPPED,
    Launcher,
    stopped_by_signals,
    stopped_without_launcher,
)
from robust_ood.cli.messages import user_errors
from robust_ood.cli.models import Models, choose_models, each_radius, several_checkpoints
from robust_ood.cli.networks import add_network_arguments, find_parts, load, name_of
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.preconditions import check_classes
from robust_ood.cli.presentation import Ending, check_figures, choose_ending, command_line, present
from robust_ood.cli.processes import check_processes, is_first
from robust_ood.cli.quiet import quiet
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.deprecation import warn_renamed
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation import CHUNK, FolderStore, Grid, ProgressBar, Results, print_results
from robust_ood.evaluation.attacked_images import check_form
from robust_ood.evaluation.certificates import Certificate, build_certificates
from robust_ood.evaluation.grid_checks import check_count
from robust_ood.evaluation.summaries import summarise
from robust_ood.evaluation.terminal import describe_failure
from robust_ood.evaluation.transfer_rows import check_sources, read_sources

Specs = list[str | dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked as far as that goes without data and networks.

    config: all settings. settings: the same as plain values, for the results. models: the
    checkpoints. ending: what follows the results. command: how it was called.
    """

    parser: ArgumentParser
    config: Any
    settings: dict[str, Any]
    models: Models
    device: torch.device
    ending: Ending
    command: str


@dataclass(frozen=True)
class Subjects:
    """What is evaluated: networks and their detectors by the name that rows carry; on what."""

    data: OODData
    attacks: dict[str, Attack]
    certificates: list[Certificate]
    nets: dict[str, nn.Module]
    detectors: dict[str, dict[str, Detector]]


def run(arguments: Sequence[str]) -> int:
    """Evaluate checkpoints and return the exit code.

    It is 0, 1 where a detector failed, or 130 after an interruption.
    """
    quiet()
    check_processes()
    request = parse(arguments)
    console = Console(quiet=not is_first())
    subjects = build(request, console)
    with (
        stopped_by_signals(),
        stopped_without_launcher() as launcher,
        ProgressBar(console) as progress,
    ):
        grid, stopped = compute(request, subjects, progress)
        # Of several processes under torchrun, the first one reads what all have stored.
        if not is_first():
            return _end_beside_first(launcher, stopped=stopped)
        results = read_results(grid, request.config.intervals, stopped=stopped)
    return finish(request, grid, results, console)


def check(arguments: Sequence[str]) -> None:
    """Build networks, detectors, attacks and data of an evaluation, and compute nothing.

    Raises: `UserError` for whatever is wrong with them.
    """
    quiet()
    build(parse(arguments), Console(quiet=True))


def parser() -> ArgumentParser:
    """Return the parser of the evaluate command."""
    register_types()
    parser = CommandParser(prog="evaluate.py", description="Evaluate saved networks.")
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="YAML file; several compose"
    )
    add_network_arguments(parser, several=True)
    for name, (kind, default, words) in _OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=words)
    parser.add_class_arguments(OODData, "data")
    return parser


_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "include": (list[str], [], "config files that this one builds on"),
    "models": (
        dict[str, Path | list[Path]] | None,
        None,
        "checkpoints by name; lists: recipes",
    ),
    "output": (
        Path,
        Path("results"),
        "folder of results.json, results.csv and what is computed",
    ),
    "replace": (bool, False, "replace results of other models or data in the output folder"),
    "published": (
        str | None,
        None,
        "the published claim whose weights these are; configs/published/ sets it",
    ),
    "name": (str | None, None, "model name in the rows (default: checkpoint's folder)"),
    "detectors": (Specs, ["msp"], "names, or name and settings"),
    "attacks": (Specs, ["pgd"], "names, or name and settings; radius may be a list"),
    "certificates": (Specs, [], "bounds that no attack passes: smoothing, interval"),
    "limit": (int | None, None, "use only so many images of each set"),
    "sanity": (bool | None, None, "look for signs of failed attacks (default: true)"),
    "checks": (bool | None, None, "the old name of --sanity, for one release"),
    "skip_settled": (
        bool,
        True,
        "let suites leave alone images that can no longer change a number",
    ),
    "save_attacked": (
        Literal["npz", "png"] | None,
        None,
        "also write the attacked images: npz, or png of attacks with quantise: true",
    ),
    "transfer": (
        str | list[str],
        [],
        "all, or networks or network/detector whose attacked images the others score, too",
    ),
    "intervals": (bool | int, True, "95 % intervals of the rates"),
    "batch_size": (int | None, None, "images of a batch (default: found; halved if too large)"),
    "chunk": (int, CHUNK, "images that are computed and stored at a time"),
    "figures": (
        bool | Specs,
        True,
        "shift, curves, landscape, strips, errors, transfer: names, or name and settings",
    ),
    "report": (bool, True, "end with report.html in the output folder"),
    "table": (
        Literal["summary", "full"],
        "summary",
        "what is printed: one page, or every set, attack and warning",
    ),
    "tensorboard": (
        bool,
        False,
        "also write the report's tables and figures for TensorBoard",
    ),
    "device": (str, "auto", "auto, cpu, cuda or cuda:N"),
}
"""By name, type, default and help of the plain options."""


def parse(arguments: Sequence[str]) -> Request:
    """Return what the user asked for.

    Raises: `UserError` for settings that are wrong whatever the data and networks are.
    """
    commands = parser()
    config = parse_arguments(commands, several_checkpoints(with_includes(arguments)))
    config.sanity = _sanity(config.sanity, config.checks)
    settings = yaml.safe_load(commands.dump(config))
    settings.pop("checks", None)
    check_names(config)
    models = choose_models(config.checkpoint, config.models, config.name)
    check_count("limit", config.limit)
    check_count("batch_size", config.batch_size)
    check_count("chunk", config.chunk)
    if config.intervals < 0:
        raise UserError(f"intervals: {config.intervals} is neither true nor false")
    ending = choose_ending(config.figures, config.report, config.tensorboard)
    device = choose_device(config.device)
    check_writable(config.output)
    command = command_line("evaluate", arguments)
    return Request(commands, config, settings, models, device, ending, command)


def _sanity(sanity: bool | None, checks: bool | None) -> bool:
    """Return whether to look for signs of failed attacks; `checks` is the old name."""
    if checks is not None:
        warn_renamed("--checks (config: checks)", "--sanity (config: sanity)")
    if sanity is not None:
        return sanity
    if checks is not None:
        return checks
    return True


def build(request: Request, console: Console) -> Subjects:
    """Return networks, detectors, attacks and data.

    Raises: `UserError` for what does not fit together, and for an output folder that holds the
        results of something else.
    """
    config = request.config
    with user_errors(dict(config.items())):
        built = _instantiated(request)
    data: OODData = built.data
    against = attacks.build_all(each_radius(config.attacks))
    certificates = build_certificates(config.certificates)
    data.setup("test")
    data.ood_sets()
    inliers = data.inliers("test")
    nets: dict[str, nn.Module] = {}
    for name, path in request.models.checkpoints.items():
        net = built.get("net")
        if nets:  # the config's network is that of the first checkpoint; build one more
            net = _instantiated(request).get("net")
        net, description = find_parts(
            load(path, net, config.key_map, averaged=config.averaged), inliers.input_shape
        )
        check_classes(net, data, "test")
        nets[name or name_of(path, net)] = net
        if description:
            console.print(f"net: {description}", soft_wrap=True, markup=False)
    chosen: dict[str, dict[str, Detector]] = {}
    for name, net in nets.items():
        chosen[name] = {}
        if config.detectors:  # without any, the classifier alone is evaluated
            chosen[name] = dict(detectors.build_all(config.detectors, net))
    check_form(config.save_attacked, against)
    check_sources(read_sources(config.transfer), chosen, against)
    check_figures(config.figures, chosen)
    if not config.replace:
        check_output(config.output, nets, inliers.name)
    return Subjects(data, dict(against), certificates, nets, chosen)


def _instantiated(request: Request) -> Any:
    """Return what the config names by class: the network and the data.

    Detectors, attacks, bounds and figures are read by their registries; jsonargparse would build
    whatever has a class path inside them, such as a detector's own network, and for nothing.
    """
    config = request.config.clone()
    for name in ("detectors", "attacks", "certificates", "figures"):
        config[name] = []
    return request.parser.instantiate(config)


def compute(request: Request, subjects: Subjects, progress: ProgressBar) -> tuple[Grid, bool]:
    """Compute what is missing in the output folder, and return whether the user stopped it."""
    config = request.config
    grid = Grid(
        subjects.data,
        subjects.attacks,
        FolderStore(config.output),
        limit=config.limit,
        device=request.device,
        sanity=config.sanity,
        progress=progress,
        batch_size=config.batch_size,
        chunk=config.chunk,
        certificates=subjects.certificates,
        skip_settled=config.skip_settled,
        save_attacked=config.save_attacked,
        transfer=config.transfer,
    )
    try:
        for name, net in subjects.nets.items():
            grid.add(name, net, subjects.detectors[name])
        cost = grid.cost()
        if cost is not None and is_first():
            print(f"certificates: {cost}", file=sys.stderr, flush=True)
        grid.compute()
    except KeyboardInterrupt:
        return grid, True
    return grid, False


def read_results(grid: Grid, intervals: bool | int, *, stopped: bool) -> Results:
    """Return the results; after an interruption, also one in here, those of what is stored."""
    try:
        results = grid.results(intervals)
    except KeyboardInterrupt:
        stopped = True
        results = grid.results(intervals)
    results.complete = results.complete and not stopped
    return results


def finish(request: Request, grid: Grid, results: Results, console: Console) -> int:
    """Write and print the results, end with pictures and report, and return the exit code."""
    folder = request.config.output
    results.summary = summarise(results.rows, results.classification, request.models.recipes)
    results.environment["command"] = request.command
    results.environment["config"] = request.settings
    results.environment["cells_computed"] = grid.runner.computed
    results.write(folder)
    if results.rows or results.classification:
        print_results(results, console, full=request.config.table == "full")
    written = f"wrote {folder / 'results.json'} and {folder / 'results.csv'}"
    console.print(written, markup=False)
    if not results.complete:
        print("stopped: what is done is kept; the same command computes the rest", file=sys.stderr)
        return STOPPED
    saved = grid.write_attacked(folder)
    if saved:
        where = folder / "attacked"
        console.print(f"wrote {len(saved)} sets of attacked images into {where}", markup=False)
    for failure in results.failures:
        print(f"failed: {describe_failure(failure)}", file=sys.stderr)
    if results.rows:
        present(folder, grid, request.ending, console)
    return 1 if results.failures else 0


def _end_beside_first(launcher: Launcher, *, stopped: bool) -> int:
    """Return the exit code of a process for which the first one speaks, if that still can."""
    if stopped and launcher.is_gone:
        print(
            f"stopped: the process that started this one (pid {os.getpid()}) is gone; what is done "
            "is kept",
            file=sys.stderr,
        )
    return STOPPED if stopped else 0
