"""`robust-ood calibrate`: detectors with thresholds that keep a promise, as folders to ship."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console
from torch import nn

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.bounds import check_name
from robust_ood.cli.configs import with_includes
from robust_ood.cli.evaluate_checks import choose_device
from robust_ood.cli.export_command import history
from robust_ood.cli.messages import user_errors
from robust_ood.cli.networks import add_network_arguments, load
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.cli.preconditions import check_classes
from robust_ood.cli.quiet import quiet
from robust_ood.cli.types import register_types
from robust_ood.data import OODData
from robust_ood.deployment import Guard, calibrate, images_needed, write_guard
from robust_ood.deployment.calibration import Promise
from robust_ood.deployment.card import interval
from robust_ood.deployment.folder import require_safetensors
from robust_ood.errors import UserError
from robust_ood.models import describe
from robust_ood.names import file_name
from robust_ood.settings import read_part
from robust_ood.texts import printable


def parser() -> ArgumentParser:
    """Return the parser of the calibrate command."""
    register_types()
    parser = CommandParser(
        prog="robust-ood calibrate", description="Fit detectors and their thresholds, to be used."
    )
    add = parser.add_argument
    add("-c", "--config", action=ActionConfigFile, help="YAML file with the data; several compose")
    add("--include", type=list[str], default=[], help="config files that this one builds on")
    add_network_arguments(parser)
    add("--output", type=Path, default=Path("guard"), help="folder of the guard")
    add(
        "--detectors",
        type=list[str | dict[str, Any]],
        default=["msp"],
        help="names, or names with settings; of several, each gets a folder in --output",
    )
    add("--accept", type=float, default=0.95, help="share of new in-distribution images accepted")
    add("--confidence", type=float, default=0.95, help="with which that holds")
    add(
        "--calibrate_on",
        type=Literal["validation", "test"],
        default="validation",
        help="the held-out in-distribution images that the threshold is from",
    )
    add(
        "--results",
        type=Path | None,
        default=None,
        help="folder of an evaluation of this checkpoint, whose attacked rates are stated",
    )
    add("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_class_arguments(OODData, "data")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Calibrate detectors and return the exit code."""
    quiet()
    commands = parser()
    config = parse_arguments(commands, with_includes(arguments))
    images_needed(config.accept, config.confidence)  # checks both
    require_safetensors()
    for spec in config.detectors:
        part = read_part("detectors", spec)
        check_name("detectors.label", part.label or part.name)
    device = choose_device(config.device)
    check_writable(config.output)
    with user_errors(dict(config.items())):
        built = commands.instantiate(config)
    net = load(config.checkpoint, built.get("net"), config.key_map, averaged=config.averaged)
    _check_network(net)
    data: OODData = built.data
    check_classes(net, data, config.calibrate_on)
    training: dict[str, Any] = {}
    names: tuple[str, ...] = ()
    if config.checkpoint is not None:
        training, names = history(config.checkpoint)
    guards = calibrate(
        net.to(device),
        config.detectors,
        data,
        Promise(config.accept, config.confidence, config.calibrate_on),
        results=config.results,
        training=training,
        class_names=names,
    )
    for label, guard in guards.items():
        folder = config.output if len(guards) == 1 else config.output / file_name(label)
        write_guard(guard, folder)
        _show(guard, folder)
    return 0


def _check_network(net: nn.Module) -> None:
    """Refuse a network that a folder cannot describe, before anything is computed."""
    if describe(net) is None:
        raise UserError(
            f"net: {type(net).__name__} is not one of this project's networks, which alone a "
            "guard's folder can describe without naming code"
        )


def _show(guard: Guard, folder: Path) -> None:
    """Print what a guard promises, and what was measured."""
    console = Console(soft_wrap=True, highlight=False)
    description = guard.description
    label = printable(description.label)
    console.print(
        f"{label}: threshold {description.threshold.value:.6g}; {description.threshold.in_words()}",
        markup=False,
    )
    for entry in description.measured:
        low, high = interval(entry)
        attack = "" if entry.attack == "none" else f" under {entry.attack}"
        console.print(
            f"  {entry.images} ({entry.group}){attack}: {100 * entry.share:.1f} % accepted "
            f"[{100 * low:.1f}, {100 * high:.1f}] of {entry.count}",
            markup=False,
        )
    console.print(f"wrote {folder}: guard.json, README.md and tensors", markup=False)
