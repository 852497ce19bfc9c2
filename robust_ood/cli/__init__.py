"""The commands, such as `train` and `evaluate`, and `main` to choose one.

A user's mistake, wherever it is raised, ends here as one line and exit code 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

Arguments = Sequence[str] | None


def main(arguments: Arguments = None) -> int:
    """Run `robust-ood COMMAND ...` and return the exit code."""
    arguments = _given(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: robust-ood COMMAND ...\n\ncommands:")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:14} {summary}")
        print("\nrobust-ood COMMAND --help describes a command.")
        return 0 if arguments else 2
    name, *options = arguments
    if name not in COMMANDS:
        from robust_ood.errors import unknown_name

        return _complain(unknown_name("command", name, COMMANDS))
    command, _ = COMMANDS[name]
    return command(options)


def train(arguments: Arguments = None) -> int:
    """Train, validate or test: see `python train.py --help`. Returns the exit code."""
    return _guarded("train", arguments)


def evaluate(arguments: Arguments = None) -> int:
    """Evaluate a checkpoint: see `python evaluate.py --help`. Returns the exit code."""
    return _guarded("evaluate", arguments)


def data(arguments: Arguments = None) -> int:
    """List, download, verify and compare data sets: see `robust-ood data --help`.

    Returns the exit code.
    """
    return _guarded("data", arguments)


def export(arguments: Arguments = None) -> int:
    """Write a checkpoint's network, or a guard, on its own: see `robust-ood export --help`.

    Returns the exit code.
    """
    return _guarded("export", arguments)


def report(arguments: Arguments = None) -> int:
    """Write an HTML report over folders of results: see `robust-ood report --help`.

    Returns the exit code.
    """
    return _guarded("report", arguments)


def compare(arguments: Arguments = None) -> int:
    """Test which detectors and networks differ: see `robust-ood compare --help`.

    Returns the exit code.
    """
    return _guarded("compare", arguments)


def encoder_attack(arguments: Arguments = None) -> int:
    """Match OOD images with in-distribution ones: see `robust-ood encoder-attack --help`.

    Returns the exit code.
    """
    return _guarded("encoder-attack", arguments)


def text_features(arguments: Arguments = None) -> int:
    """Write features of words: see `robust-ood text-features --help`. Returns the exit code."""
    return _guarded("text-features", arguments)


def search(arguments: Arguments = None) -> int:
    """Choose detectors' settings: see `robust-ood search --help`. Returns the exit code."""
    return _guarded("search", arguments)


def study(arguments: Arguments = None) -> int:
    """Train and compare methods under one budget: see `robust-ood study --help`.

    Returns the exit code.
    """
    return _guarded("study", arguments)


def check_evaluation(arguments: Arguments = None) -> int:
    """Build all that an evaluation would use, and compute nothing. Returns the exit code."""

    def build() -> int:
        from robust_ood.cli.evaluate_command import check

        check(_given(arguments))
        return 0

    return _in_one_line(build)


def calibrate(arguments: Arguments = None) -> int:
    """Fit detectors and thresholds to be used: see `robust-ood calibrate --help`.

    Returns the exit code.
    """
    return _guarded("calibrate", arguments)


def predict(arguments: Arguments = None) -> int:
    """Decide on image files: see `robust-ood predict --help`. Returns the exit code."""
    return _guarded("predict", arguments)


def serve(arguments: Arguments = None) -> int:
    """Serve a guard over HTTP: see `robust-ood serve --help`. Returns the exit code."""
    return _guarded("serve", arguments)


def watch(arguments: Arguments = None) -> int:
    """Look for drift in a log of scores: see `robust-ood watch --help`. Returns the exit code."""
    return _guarded("watch", arguments)


def paper(arguments: Arguments = None) -> int:
    """Make a table or figure of a paper: see `robust-ood paper --help`. Returns the exit code."""
    return _guarded("paper", arguments)


def safe_spots(arguments: Arguments = None) -> int:
    """Measure accuracy on safe spots: see `robust-ood safe-spots --help-all`.

    Returns the exit code.
    """
    return _guarded("safe-spots", arguments)


def flagged(arguments: Arguments = None) -> int:
    """Measure how many images that fool the classifier detectors reject.

    See `robust-ood flagged --help-all`. Returns the exit code.
    """
    return _guarded("flagged", arguments)


def zoo(arguments: Arguments = None) -> int:
    """List, show and verify trained networks: see `robust-ood zoo --help`.

    Returns the exit code.
    """
    return _guarded("zoo", arguments)


def leaderboard(arguments: Arguments = None) -> int:
    """Rank results that can be re-checked: see `robust-ood leaderboard --help`.

    Returns the exit code.
    """
    return _guarded("leaderboard", arguments)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train, validate or test a network (fit, validate, test)"),
    "evaluate": (evaluate, "score a saved network's detectors, clean and under attack"),
    "encoder-attack": (
        encoder_attack,
        "make OOD images that a network encodes like in-distribution ones",
    ),
    "search": (search, "choose detectors' settings on validation sets, as a config for evaluate"),
    "report": (report, "write an HTML page with tables and figures over folders of results"),
    "compare": (compare, "test which detectors and networks differ by more than chance"),
    "leaderboard": (leaderboard, "rank results that are re-checked, as a page, Markdown and JSON"),
    "zoo": (zoo, "list, show and verify the trained networks that come with the package"),
    "study": (study, "train and compare methods with several seeds under one budget"),
    "data": (data, "list, download, verify, preview and compare data sets"),
    "export": (export, "write a network as plain weights, or a guard for torch.export or ONNX"),
    "text-features": (text_features, "write features of words for zero-shot detection"),
    "calibrate": (calibrate, "fit detectors and thresholds that keep a promise, as a guard"),
    "predict": (predict, "classify image files with a guard, or reject them"),
    "serve": (serve, "serve a guard over HTTP"),
    "watch": (watch, "look for drift in the scores of a guard's log"),
    "paper": (paper, "make a table or figure of a paper, with the printed numbers beside"),
    "safe-spots": (safe_spots, "accuracy on safe spots and under attack around them"),
    "flagged": (flagged, "share of images that fool the classifier which detectors reject"),
}


def _given(arguments: Arguments) -> list[str]:
    if arguments is None:
        arguments = sys.argv[1:]
    return list(arguments)


def _guarded(command: str, arguments: Arguments) -> int:
    """Run a command, import its module only now, and turn a user's mistake into exit code 2."""
    from robust_ood.cli.help import HELP

    arguments = _given(arguments)
    asks_for_help = not arguments or "-h" in arguments or "--help" in arguments
    if command in HELP and asks_for_help:
        print(HELP[command], end="")
        return 0 if arguments else 2

    return _in_one_line(lambda: _run(command, arguments))


def _in_one_line(call: Callable[[], int]) -> int:
    """Return the exit code of a call; a user's mistake becomes one line and exit code 2."""
    from robust_ood.errors import UserError

    try:
        _add_working_folder()
        return call()
    except SystemExit as stop:  # the parser's, once it has printed the settings
        return int(stop.code or 0)
    except UserError as error:
        return _complain(error)
    except (OSError, MemoryError) as error:
        return _complain(_system_words(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _add_working_folder() -> None:
    """Let class paths name the user's own files; last, so that those hide no library."""
    from robust_ood.errors import UserError

    try:
        folder = os.getcwd()
    except FileNotFoundError as error:
        raise UserError("working folder: it was deleted; change to one that exists") from error
    if folder not in sys.path:
        sys.path.append(folder)


def _system_words(error: OSError | MemoryError) -> str:
    """Return what the system lacks or refuses, and for which file."""
    if isinstance(error, MemoryError):
        return "memory: not enough of it for these settings"
    return f"{error.filename or 'file'}: {error.strerror or error}"


def _run(command: str, arguments: list[str]) -> int:
    run = import_module(f"robust_ood.cli.{command.replace('-', '_')}_command").run
    if "--help-all" in arguments:
        from robust_ood.cli.help import print_all_settings

        return print_all_settings(run, arguments)
    return int(run(arguments))


def _complain(error: object) -> int:
    from robust_ood.texts import one_line, printable

    message = printable(one_line(str(error))) or "unknown error"
    # A word of so many characters is a user's.
    message = re.sub(r"\S{300,}", lambda word: f"{word[0][:80]}...", message)
    print(f"error: {message}", file=sys.stderr)
    return 2
