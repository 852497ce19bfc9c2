"""`evaluate.py`: saved checkpoints, their detectors, attacks through them and OOD sets, to tables
and files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console
from torch import nn

from robust_ood import attacks, detectors
from robust_ood.cli.configs import with_includes
from robust_ood.cli.messages import parse, user_errors
from robust_ood.cli.models import Models, choose_models, each_radius, several_checkpoints
from robust_ood.cli.networks import add_network_arguments, find_parts, load, name_of
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.preconditions import check_classes
from robust_ood.cli.presentation import choose_figures, command_line, present
from robust_ood.cli.quiet import quiet
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.evaluation import CHUNK, FolderStore, Grid, ProgressBar, Results, print_results
from robust_ood.evaluation.checks import check_count, check_output, choose_device
from robust_ood.evaluation.rows import summarise
from robust_ood.evaluation.table import describe_failure

Specs = list[str | dict[str, Any]]


def parser() -> ArgumentParser:
    """Return the parser of the evaluate command."""
    register_types()
    parser = CommandParser(prog="evaluate.py", description="Evaluate saved networks.")
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="YAML file; several compose")
    add("--include", type=list[str], default=[], help="config files that this one builds on")
    add_network_arguments(parser, several=True)
    add(
        "--models",
        type=dict[str, Path | list[Path]] | None,
        default=None,
        help="checkpoints by name; lists: recipes",
    )
    add(
        "--output",
        type=Path,
        default=Path("results"),
        help="folder of results.json, results.csv and what is computed",
    )
    add(
        "--replace",
        type=bool,
        default=False,
        help="replace results of other models or data in the output folder",
    )
    add(
        "--name",
        type=str | None,
        default=None,
        help="model name in the rows (default: checkpoint's folder)",
    )
    add("--detectors", type=Specs, default=["msp"], help="names, or name and settings")
    add(
        "--attacks",
        type=Specs,
        default=["pgd"],
        help="names, or name and settings; radius may be a list",
    )
    add(
        "--limit",
        type=int | None,
        default=None,
        help="use only the first so many images of each set",
    )
    add("--checks", type=bool, default=True, help="look for signs of failed attacks")
    add(
        "--intervals",
        type=int,
        default=1000,
        help="resamples of the bootstrap intervals; 0 leaves them out",
    )
    add(
        "--batch_size",
        type=int | None,
        default=None,
        help="images of a batch (default: found; halved if too large)",
    )
    add("--chunk", type=int, default=CHUNK, help="images that are computed and stored at a time")
    add(
        "--figures",
        type=bool | list[str],
        default=True,
        help="shift, curves, landscape, strips: on a few images",
    )
    add("--report", type=bool, default=True, help="end with report.html in the output folder")
    add(
        "--tensorboard",
        type=bool,
        default=False,
        help="also write the report's tables and figures for TensorBoard",
    )
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_class_arguments(OODData, "data")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Evaluate checkpoints and return the exit code: 0, 1 where a detector failed, 130 after an
    interruption.
    """
    quiet()
    commands = parser()
    config = parse(commands, several_checkpoints(with_includes(arguments)))
    models = choose_models(config.checkpoint, config.models, config.name)
    for field, number in (
        ("limit", config.limit),
        ("batch_size", config.batch_size),
        ("chunk", config.chunk),
    ):
        check_count(field, number)
    if config.intervals < 0:
        raise UserError(f"intervals: {config.intervals} is not a number of resamples >= 0")
    kinds = choose_figures(config.figures, config.report, config.tensorboard)
    device = choose_device(config.device)
    check_writable(config.output)
    with user_errors(dict(config.items())):
        built = commands.instantiate(config)

    data: OODData = built.data
    against = attacks.build_all(each_radius(config.attacks))
    data.setup("test")
    data.ood_sets()
    inliers, first = data.inliers("test"), _is_first()
    console = Console(quiet=not first)
    nets: dict[str, nn.Module] = {}
    for name, path in models.checkpoints.items():
        own = _fresh(commands, config) if nets else built.get("net")
        net, found = find_parts(load(path, own, config.key_map), inliers.image_shape)
        check_classes(net, data, "test")
        nets[name or name_of(path, net)] = net
        if found:
            console.print(f"net: {found}", soft_wrap=True)
    chosen = {name: detectors.build_all(config.detectors, net) for name, net in nets.items()}
    if not config.replace:
        check_output(config.output, nets, inliers.name)
    stopped = False
    with ProgressBar(console) as progress:
        store, how = (
            FolderStore(config.output),
            {"limit": config.limit, "device": device, "checks": config.checks},
        )
        grid = Grid(
            data,
            against,
            store,
            **how,
            progress=progress,
            batch_size=config.batch_size,
            chunk=config.chunk,
        )
        try:
            for name, net in nets.items():
                grid.add(name, net, chosen[name])
            grid.compute()
        except KeyboardInterrupt:
            stopped = True
        if (
            not first
        ):  # of several processes under torchrun: the first one reads what all have stored
            return 130 if stopped else 0
        try:
            results = grid.results(config.intervals, new=not stopped)
        except KeyboardInterrupt:
            stopped = True
            results = grid.results(config.intervals, new=False)
    results.complete &= not stopped
    settings = yaml.safe_load(commands.dump(config))
    results.environment["command"] = command_line("evaluate", arguments)
    code = _report(results, models, settings, grid.runner.computed, console, config.output)
    if results.complete and results.rows:
        ending = {
            "report": config.report,
            "tensorboard": config.tensorboard,
            "limit": config.limit,
            "device": device,
        }
        present(config.output, grid, data, against, kinds=kinds, **ending, console=console)
    return code


def _report(
    results: Results,
    models: Models,
    settings: dict[str, Any],
    computed: int,
    console: Console,
    folder: Path,
) -> int:
    """Write and print the results and return the exit code."""
    results.summary = summarise(results.rows, results.classification, models.recipes)
    results.environment |= {"config": settings, "cells_computed": computed}
    results.write(folder)
    if results.rows or results.classification:
        print_results(results, console)
    console.print(f"wrote {folder / 'results.json'} and {folder / 'results.csv'}")
    if not results.complete:
        print("stopped: what is done is kept; the same command computes the rest", file=sys.stderr)
        return 130
    for failure in results.failures:
        print(f"failed: {describe_failure(failure)}", file=sys.stderr)
    return 1 if results.failures else 0


def _fresh(commands: ArgumentParser, config: Any) -> nn.Module | None:
    """Return one more network of the config's own, for the next checkpoint; None where the config
    names none.
    """
    net: nn.Module | None = commands.instantiate(config).get("net")
    return net


def _is_first() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1 or int(os.environ.get("RANK", 0)) == 0
