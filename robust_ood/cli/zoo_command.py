"""`robust-ood zoo`: list, show and verify the trained networks that come with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from robust_ood.cli.arguments import parse_arguments
from robust_ood.cli.parsing import CommandParser
from robust_ood.data import load_set, to_float
from robust_ood.errors import UserError
from robust_ood.models.zoo import PREFIX, pretrained, read_card, zoo_names
from robust_ood.texts import printable, radius_text

PROBE_TOLERANCE = 1e-3
"""How far outputs may be from the stored ones: what machines differ by in float32."""


def parser() -> CommandParser:
    """Return the parser of the zoo command."""
    main = CommandParser(
        prog="robust-ood zoo",
        description="List, show and verify the trained networks that come with the package. "
        "Wherever a checkpoint is accepted, so is zoo:NAME.",
    )
    commands = main.add_subcommands()
    for name, words in _COMMANDS.items():
        command = CommandParser(description=words)
        if name == "show":
            command.add_argument("name", type=str, help="network, as `zoo list` shows it")
        if name == "verify":
            command.add_argument(
                "name", type=str | None, nargs="?", default=None, help="network (default: all)"
            )
        commands.add_subcommand(name, command, help=words)
    return main


def run(arguments: Sequence[str]) -> int:
    """Run one of the zoo commands and return the exit code."""
    config = parse_arguments(parser(), arguments)
    settings = config[config.subcommand]
    if config.subcommand == "list":
        for name in zoo_names():
            print(printable(_line(read_card(name))))
    elif config.subcommand == "show":
        card = {key: value for key, value in read_card(settings.name).items() if key != "probe"}
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
        print("\n".join(map(printable, text.splitlines())))
    else:
        names = zoo_names() if settings.name is None else [settings.name]
        for name in names:
            print(f"{name}: {verify(name)}")
    return 0


def verify(name: str) -> str:
    """Check the hash of a network's weights and its outputs on synthetic images, and say so.

    Raises: `UserError` for an unknown name, damaged weights, or other outputs than the card's.
    """
    net = pretrained(name)  # checks the hash
    probe = read_card(name)["probe"]
    with torch.inference_mode():
        outputs = probe_outputs(net, probe)
    expected = torch.tensor(probe["outputs"])
    if outputs.shape != expected.shape:
        raise UserError(
            f"zoo: {name} gives outputs of shape {tuple(outputs.shape)}, its card states "
            f"{tuple(expected.shape)}"
        )
    largest = float((outputs - expected).abs().max())
    scale = max(1.0, float(expected.abs().max()))
    # Written so that NaN is refused, too.
    if not largest <= PROBE_TOLERANCE * scale:
        raise UserError(
            f"zoo: {name} gives other outputs on {probe['set']} than its card states "
            f"(difference {largest:.2g}); the code of its network has changed"
        )
    return f"hash right, outputs on {len(outputs)} synthetic images right"


def probe_outputs(net: torch.nn.Module, probe: Mapping[str, Any]) -> torch.Tensor:
    """Return the first outputs of a network on a card's synthetic images.

    Args:
        net: images `(N, C, H, W)` to outputs of any shape.
        probe: the `set` of the images, how many (`n`), their `size` and `channels`.

    Returns:
        `(N, at most 10)`.
    """
    images = load_set(probe["set"], ".", size=probe["size"], channels=probe["channels"])
    batch = to_float(images.read(torch.arange(probe["n"])))  # (N, C, H, W)
    outputs: torch.Tensor = net(batch)
    return outputs.reshape(len(outputs), -1)[:, :10].float()  # a flow gives one value an image


def _line(card: Mapping[str, Any]) -> str:
    """Return a network in one line: what it is, its accuracy, and AUROC clean and attacked."""
    accuracy = card["accuracy"]
    words = [f"{PREFIX}{card['name']}", card["method"]]
    if accuracy is not None:
        words.append(f"accuracy {accuracy['clean']:.3f}")
    for row in card["detection"]:
        if row["attacked"] == "none":
            words.append(f"{row['group']} AUROC of {row['detector']} {row['auroc']:.3f}")
        elif row["attacked"] == "both":
            threat = radius_text(row["norm"], row["radius"])
            words.append(f"{row['group']} {threat} {row['auroc']:.3f}")
    return "  ".join(words)


_COMMANDS = {
    "list": "list the networks, with accuracy and AUROC",
    "show": "print a network's card: data, recipe, numbers, hash",
    "verify": "check weights against their hashes, and outputs on synthetic images",
}
