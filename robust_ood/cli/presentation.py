"""What an evaluation ends with: pictures that need its networks and images, and the report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.status import Status

from robust_ood import reporting
from robust_ood.errors import UserError
from robust_ood.evaluation import Grid, Progress
from robust_ood.evaluation.pictures import draw_into, kinds_of
from robust_ood.evaluation.scene import set_scene
from robust_ood.evaluation.text_tables import plain


class Ending(NamedTuple):
    """What follows the results: kinds of pictures, whether a report, and for TensorBoard too."""

    kinds: list[str]
    report: bool
    tensorboard: bool


class _StatusProgress(Progress):
    """Shows what is drawn."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def begin(self, title: str) -> None:
        self._status.update(plain(title))


def choose_ending(figures: bool | Sequence[str], report: bool, tensorboard: bool) -> Ending:
    """Return what follows the results.

    Raises: `UserError` before any work for what could not be done after it.
    """
    if tensorboard and not report:
        raise UserError("tensorboard: true shows what a report has; it needs --report true")
    if report:
        reporting.check_installed()
    return Ending(kinds_of(figures), report, tensorboard)


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Return how a command is given here: by its script if the folder has it, or `robust-ood`."""
    script = f"python {name}.py" if Path(f"{name}.py").exists() else f"robust-ood {name}"
    return f"{script} {shlex.join(arguments)}"


def present(folder: Path, grid: Grid, ending: Ending, console: Console) -> None:
    """Draw the pictures that the folder lacks, write the report there, and say where it is."""
    # Pictures of an earlier evaluation may be out of date.
    if ending.kinds or (folder / "figures").is_dir():
        scene = set_scene(grid.data, grid.attacks, grid.limit, grid.device)
        with console.status("drawing figures") as status:
            progress = _StatusProgress(status)
            for model in grid.models:
                grid.bring(model)
                draw_into(folder, model.name, model.detectors, scene, ending.kinds, progress)
    if ending.report:
        page = reporting.write_report([folder], tensorboard=ending.tensorboard)
        console.print(plain(f"wrote {page}"))
