"""`robust-ood export`: a checkpoint's network as plain weights and a JSON manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.messages import user_errors
from robust_ood.cli.networks import add_network_arguments
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.errors import UserError
from robust_ood.models import export, load_network, read_checkpoint
from robust_ood.models.export import Format, find_manifest, read_manifest


def parser() -> CommandParser:
    """Return the parser of the export command."""
    parser = CommandParser(prog="robust-ood export", description="Export a network.")
    add_network_arguments(parser)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the weights and network.json"
    )
    parser.add_argument("--format", type=Format, default="pt", help="pt or safetensors")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Export a network and return the exit code."""
    commands = parser()
    config = parse_arguments(commands, arguments)
    if config.checkpoint is None:
        raise UserError("checkpoint: not given, and this command needs it")
    check_writable(config.output)
    with user_errors(dict(config.items())):
        built = commands.instantiate(config)
    net = load_network(
        config.checkpoint, built.get("net"), config.key_map, averaged=config.averaged
    )
    training, names = history(config.checkpoint)
    folder = export(net, config.output, config.format, training, names)
    print(f"wrote {folder / f'weights.{config.format}'} and {folder / 'network.json'}")
    return 0


def history(checkpoint: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return what a file says about its training, as plain values, and the names of the classes."""
    path = find_manifest(checkpoint)
    if path is not None:
        manifest = read_manifest(path)
        return dict(manifest.get("training") or {}), tuple(manifest.get("class_names") or ())
    content = read_checkpoint(checkpoint)
    if "method" not in content:
        return {}, ()
    settings = content.get("config")
    for name in ("model", "init_args"):
        if isinstance(settings, Mapping):
            settings = settings.get(name)
    training = {
        "method": content["method"],
        "epoch": content.get("epoch"),
        "steps": content.get("global_step"),
    }
    if isinstance(settings, Mapping):
        method_settings = dict(settings)
        method_settings.pop("net", None)
        training["settings"] = method_settings
    return training, ()
