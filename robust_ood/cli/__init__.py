"""The commands: `train` (fit, validate, test), `evaluate`, `report`, `data`, `export`; `main` for
`robust-ood COMMAND`.

A user's mistake, wherever it is noticed, ends here as one line and exit code 2.
"""

from __future__ import annotations

import os
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
        print("\nrobust-ood COMMAND --help says more.")
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        from robust_ood.errors import unknown_name

        return _complain(unknown_name("command", arguments[0], COMMANDS))
    return COMMANDS[arguments[0]][0](arguments[1:])


def train(arguments: Arguments = None) -> int:
    """Train, validate or test: see `python train.py --help`. Returns the exit code."""
    return _guarded("train", arguments)


def evaluate(arguments: Arguments = None) -> int:
    """Evaluate a checkpoint: see `python evaluate.py --help`. Returns the exit code."""
    return _guarded("evaluate", arguments)


def data(arguments: Arguments = None) -> int:
    """List, download, verify, preview and compare data sets: see `robust-ood data --help`. Returns
    the exit code.
    """
    return _guarded("data", arguments)


def export(arguments: Arguments = None) -> int:
    """Write a checkpoint's network on its own: see `robust-ood export --help`. Returns the exit
    code.
    """
    return _guarded("export", arguments)


def report(arguments: Arguments = None) -> int:
    """Write an HTML report over folders of results: see `robust-ood report --help`. Returns the
    exit code.
    """
    return _guarded("report", arguments)


def search(arguments: Arguments = None) -> int:
    """Choose detectors' settings: see `robust-ood search --help`. Returns the exit code."""
    return _guarded("search", arguments)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train, validate or test a network (fit, validate, test)"),
    "evaluate": (evaluate, "score a saved network's detectors, clean and under attack"),
    "search": (search, "choose detectors' settings on validation sets, as a config for evaluate"),
    "report": (report, "write an HTML page with tables and figures over folders of results"),
    "data": (data, "list, download, verify, preview and compare data sets"),
    "export": (export, "write a checkpoint's network as plain weights and a JSON description"),
}


def _guarded(command: str, arguments: Arguments) -> int:
    """Import a command's module only now, run it, and turn the user's mistakes into one line and
    exit code 2.
    """
    from robust_ood.cli.help import HELP, print_all_settings

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if command in HELP and (not arguments or {"-h", "--help"} & set(arguments)):
        print(HELP[command], end="")
        return 0 if arguments else 2

    from robust_ood.errors import UserError

    # Class paths may name the user's own files here; last, so that those hide no library.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    run = import_module(f"robust_ood.cli.{command}_command").run
    try:
        return int(
            print_all_settings(run, arguments) if "--help-all" in arguments else run(arguments)
        )
    except SystemExit as stop:  # the parser's, once it has printed the settings
        return int(stop.code or 0)
    except UserError as error:
        return _complain(error)
    except OSError as error:
        return _complain(f"{error.filename or 'file'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _complain(error: object) -> int:
    from robust_ood.cli.messages import one_line

    print(f"error: {one_line(str(error))}", file=sys.stderr)
    return 2
