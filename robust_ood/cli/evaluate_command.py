"""`evaluate.py`: a saved checkpoint, its detectors, attacks through them, and OOD sets, to a table and result files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from robust_ood import attacks, detectors, evaluation
from robust_ood.cli.checks import check_classes
from robust_ood.cli.configs import instantiated, with_includes
from robust_ood.cli.messages import explain, option_names, user_errors
from robust_ood.cli.networks import add_network_arguments, find_parts, load, name_of
from robust_ood.cli.output import check_writable
from robust_ood.cli.quiet import quiet
from robust_ood.cli.types import register_types
from robust_ood.data import EvaluationLoader, OODData
from robust_ood.evaluation.checks import check_limit, choose_device


def parser() -> ArgumentParser:
    """Return the parser of the evaluate command."""
    register_types()
    parser = ArgumentParser(prog="evaluate.py", description="Evaluate a saved network.", exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; several compose")
    parser.add_argument("--include", type=list[str], default=[], help="config files that this one builds on")
    add_network_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of results.json and results.csv")
    parser.add_argument(
        "--name", type=str | None, default=None, help="model name in the rows (default: the checkpoint's folder)"
    )
    parser.add_argument(
        "--detectors", type=list[str | dict[str, Any]], default=["msp"], help="names, or name and settings"
    )
    parser.add_argument(
        "--attacks", type=list[str | dict[str, Any]], default=["pgd"], help="names, or name and settings"
    )
    parser.add_argument("--limit", type=int | None, default=None, help="use only the first so many images of each set")
    parser.add_argument("--checks", type=bool, default=True, help="look for signs of failed attacks")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_class_arguments(OODData, "data")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Evaluate a checkpoint and return the exit code."""
    quiet()
    commands = parser()
    try:
        config = commands.parse_args(with_includes(arguments))
    except ArgumentError as error:
        raise explain(error, option_names(commands)) from error
    check_limit(config.limit)
    device = choose_device(config.device)
    check_writable(config.output)
    with user_errors(dict(config.items())):
        built = instantiated(commands, config)

    net = load(config.checkpoint, built.get("net"), config.key_map)
    against = attacks.build_all(config.attacks)
    data: OODData = built.data
    data.setup("test")
    data.ood_sets()
    net, found = find_parts(net, data.inliers("test").image_shape)
    check_classes(net, data, "test")
    chosen = detectors.build_all(config.detectors, net)
    console = Console()
    if found:
        console.print(f"net: {found}", soft_wrap=True)
    unfitted = [detector for detector in chosen.values() if not detector.fitted]
    if unfitted:
        with console.status("fitting detectors on the training images"):
            net.to(device)
            detectors.fit(unfitted, EvaluationLoader(data.inliers("train"), batch_size=data.evaluation_batch_size))
    with console.status("evaluating") as status:
        results = evaluation.evaluate(
            net,
            detectors=chosen,
            attacks=against,
            data=data,
            model=config.name or name_of(config.checkpoint, net),
            limit=config.limit,
            device=device,
            checks=config.checks,
            progress=lambda step: status.update(step),
        )
    results.write(config.output)
    evaluation.print_results(results, console)
    console.print(f"wrote {config.output / 'results.json'} and {config.output / 'results.csv'}")
    return 0
