"""Which of several processes this is, as launchers such as torchrun say in the environment."""

from __future__ import annotations

import os

from robust_ood.errors import UserError

_LOWEST = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}


def check_processes() -> None:
    """Raise `UserError` for variables that make no sense, alone or together."""
    debug = os.environ.get("JSONARGPARSE_DEBUG", "")
    if debug.lower() not in ("", "true", "false"):
        raise UserError(
            f"JSONARGPARSE_DEBUG: expected true or false in the environment, got {debug!r}"
        )
    size = _number("WORLD_SIZE")
    rank = _number("RANK")
    local_rank = _number("LOCAL_RANK")
    if size is None or size == 1:
        return
    started_by_lightning = "NODE_RANK" in os.environ and "RANK" not in os.environ
    if local_rank is None or (rank is None and not started_by_lightning):
        raise UserError(
            f"WORLD_SIZE: {size} in the environment, without RANK and LOCAL_RANK; start the "
            "processes by torchrun, or unset it"
        )
    if rank is not None and rank >= size:
        raise UserError(f"RANK: {rank} in the environment is not below WORLD_SIZE, {size}")


def is_first() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return (_number("WORLD_SIZE") or 1) == 1 or (_number("RANK") or 0) == 0


def _number(name: str) -> int | None:
    """Return a variable of the environment; None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or not text.isascii() or len(text) > 9 or int(text) < _LOWEST[name]:
        raise UserError(
            f"{name}: expected a whole number >= {_LOWEST[name]} in the environment, got {text!r}"
        )
    return int(text)
