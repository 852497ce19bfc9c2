"""Trained networks that come with the package, each with a card that says how good it is and why.

A network lies in `robust_ood/zoo/NAME/`: an export (`weights.safetensors`, `network.json`) and
`card.json`. Wherever a checkpoint is accepted, so is `zoo:NAME`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

from robust_ood.arguments import typed
from robust_ood.errors import UserError, unknown_name

PREFIX = "zoo:"
CARD = "card.json"
WEIGHTS = "weights.safetensors"
SCHEMA = 1
FOLDER = Path(__file__).parents[1] / "zoo"

FIELDS = (
    "name",
    "method",
    "data",
    "recipe",
    "minutes",
    "machine",
    "seed",
    "commit",
    "licence",
    "accuracy",
    "detection",
    "sanity",
    "probe",
    "sha256",
)
"""What every card states; `read_card` refuses one that lacks any."""


def zoo_names() -> list[str]:
    """Return the names of the networks that come with the package, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD}"))


@typed
def read_card(name: str) -> dict[str, Any]:
    """Return what is known of a network of the zoo: its data, recipe, numbers and hash.

    Raises:
        UserError: a name that the zoo does not have, with the nearest one; a damaged card.
    """
    known = zoo_names()
    if name not in known:
        raise unknown_name("zoo", name, known)
    path = FOLDER / name / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"zoo: {path} is not readable JSON; {_REPAIR}") from error
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        raise UserError(f"zoo: {path} is no card of schema {SCHEMA}; {_REPAIR}")
    missing = [field for field in FIELDS if field not in card]
    if missing:
        raise UserError(f"zoo: {path} lacks {', '.join(missing)}; {_REPAIR}")
    return card


@typed
def pretrained(name: str) -> nn.Module:
    """Return a network of the zoo with its weights, in eval mode, on the CPU.

    It takes images `(N, C, H, W)` in [0, 1]; `read_card(name)` says which ones it was trained on.

    Args:
        name: such as "digits-aloe"; `zoo_names()` lists them.

    Raises:
        UserError: a name that the zoo does not have, with the nearest one; damaged weights.
    """
    from robust_ood.models.loading import load_network  # which reads `zoo:NAME` through this module

    return load_network(f"{PREFIX}{name}")


def located(path: Path | str) -> Path:
    """Return the folder of the network that `zoo:NAME` names; any other path as it is.

    Raises:
        UserError: a name that the zoo does not have, or weights that are not those of the card.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(path)
    name = text[len(PREFIX) :]
    check_weights(name)
    return FOLDER / name


def check_weights(name: str) -> None:
    """Raise `UserError` unless a network's weights are those that its card was measured with."""
    card = read_card(name)
    weights = FOLDER / name / WEIGHTS
    try:
        actual = hash_of(weights)
    except OSError as error:
        raise UserError(f"zoo: the weights of {name} are missing ({weights}); {_REPAIR}") from error
    if actual != card["sha256"]:
        raise UserError(
            f"zoo: the weights of {name} are damaged: expected sha256 {str(card['sha256'])[:12]}, "
            f"got {actual[:12]} ({weights}); {_REPAIR}"
        )


def hash_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


_REPAIR = "install the package again: pip install --force-reinstall --no-deps robust-ood"
