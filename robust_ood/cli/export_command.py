"""`robust-ood export`: a checkpoint's network as plain weights, or a guard as a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.messages import user_errors
from robust_ood.cli.networks import add_network_arguments
from robust_ood.cli.output import check_writable
from robust_ood.cli.parsing import CommandParser
from robust_ood.errors import UserError
from robust_ood.models import export, load_network, read_checkpoint
from robust_ood.models.export import find_manifest, read_manifest

Format = Literal["pt", "safetensors", "torch", "onnx"]
_OF_GUARDS = ("torch", "onnx")


def parser() -> CommandParser:
    """Return the parser of the export command."""
    parser = CommandParser(prog="robust-ood export", description="Export a network.")
    parser.add_argument(
        "guard", type=Path | None, nargs="?", default=None, help="guard, instead of a checkpoint"
    )
    add_network_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path | None,
        default=None,
        help="folder to write into (default of a guard: `export` in its folder)",
    )
    parser.add_argument(
        "--format",
        type=Format | None,
        default=None,
        help="of a checkpoint pt (default) or safetensors, of a guard torch (default) or onnx",
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Export a network and return the exit code."""
    commands = parser()
    config = parse_arguments(commands, arguments)
    if config.guard is not None:
        return _export_guard(config)
    if config.checkpoint is None:
        raise UserError("checkpoint: not given, and this command needs it (or a guard's folder)")
    if config.output is None:
        raise UserError("output: not given, and this command needs it")
    weights: Any = config.format or "pt"
    if weights in _OF_GUARDS:
        raise UserError(
            f"format: expected one of pt, safetensors, got {weights!r}, which is for guards "
            "(robust-ood calibrate writes them)"
        )
    check_writable(config.output)
    with user_errors(dict(config.items())):
        built = commands.instantiate(config)
    net = load_network(
        config.checkpoint, built.get("net"), config.key_map, averaged=config.averaged
    )
    training, names = history(config.checkpoint)
    folder = export(net, config.output, weights, training, names)
    print(f"wrote {folder / f'weights.{weights}'} and {folder / 'network.json'}")
    return 0


def _export_guard(config: Any) -> int:
    """Write a guard as a program, and say how near it is to PyTorch."""
    from robust_ood.deployment import export_guard, load_guard

    program: Any = config.format or "torch"
    if program not in _OF_GUARDS:
        raise UserError(f"format: {program} is for checkpoints; of a guard, torch and onnx")
    for field in ("checkpoint", "net", "key_map"):
        if config.get(field) is not None:
            raise UserError(f"{field}: a guard has its own network; give one or the other")
    output = config.output or config.guard / "export"
    guard = load_guard(config.guard)
    check_writable(output)
    exported = export_guard(guard, output, program)
    print(f"wrote {exported.file}: {exported.in_words()}")
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
