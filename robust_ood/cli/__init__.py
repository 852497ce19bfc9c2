"""The commands: `train` (fit, validate, test) and `evaluate`; `main` dispatches `robust-ood COMMAND`.

A user's mistake, wherever it is noticed, ends here as one line and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

Arguments = Sequence[str] | None


def main(arguments: Arguments = None) -> int:
    """Run `robust-ood COMMAND ...` and return the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: robust-ood COMMAND ...\n\ncommands:")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:10} {summary}")
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        from robust_ood.errors import unknown_name

        print(f"error: {unknown_name('command', arguments[0], COMMANDS)}", file=sys.stderr)
        return 2
    return COMMANDS[arguments[0]][0](arguments[1:])


def train(arguments: Arguments = None) -> int:
    """Train, validate or test: see `python train.py --help`. Returns the exit code."""

    return _guarded("robust_ood.cli.train", arguments)


def evaluate(arguments: Arguments = None) -> int:
    """Evaluate a checkpoint: see `python evaluate.py --help`. Returns the exit code."""

    return _guarded("robust_ood.cli.evaluate", arguments)


def data(arguments: Arguments = None) -> int:
    """List, download, verify, preview and compare data sets: see `robust-ood data --help`. Returns the exit code."""

    return _guarded("robust_ood.cli.data", arguments)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train, validate or test a network (fit, validate, test)"),
    "evaluate": (evaluate, "score a saved network's detectors, clean and under attack"),
    "data": (data, "list, download, verify, preview and compare data sets"),
}


def _guarded(module: str, arguments: Arguments) -> int:
    """Import a command's module only now, run it, and turn the user's mistakes into one line and exit code 2."""
    from jsonargparse import ArgumentError

    from robust_ood.errors import UserError

    try:
        return int(import_module(module).run(list(sys.argv[1:] if arguments is None else arguments)))
    except (UserError, ArgumentError) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def one_line(message: str) -> str:
    """Return the part of a message that names the mistake, without line breaks.

    Configuration errors nest: each level adds a line, and the innermost one says what is wrong.
    """
    lines = [line.strip(" -*\t") for line in message.splitlines() if line.strip(" -*\t")]
    return " ".join(lines) if lines else "unknown error"
