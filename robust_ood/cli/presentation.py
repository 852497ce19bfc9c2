"""What an evaluation ends with: pictures that need its networks and images, and the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.status import Status

from robust_ood import reporting
from robust_ood.detectors import Detector
from robust_ood.errors import UserError
from robust_ood.evaluation import Grid, Progress
from robust_ood.evaluation.kinds import KINDS, PictureRequest, pictures_of
from robust_ood.evaluation.pictures import draw_into, images_needed
from robust_ood.evaluation.scene import set_scene
from robust_ood.evaluation.text_tables import plain
from robust_ood.settings import PartSpec


class Ending(NamedTuple):
    """What follows the results: pictures, whether a report, and for TensorBoard too."""

    pictures: list[PictureRequest]
    report: bool
    tensorboard: bool


class _StatusProgress(Progress):
    """Shows what is drawn."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def begin(self, title: str) -> None:
        self._status.update(plain(title))


def choose_ending(figures: bool | Sequence[PartSpec], report: bool, tensorboard: bool) -> Ending:
    """Return what follows the results.

    Raises: `UserError` before any work for what could not be done after it.
    """
    if tensorboard and not report:
        raise UserError("tensorboard: true shows what a report has; it needs --report true")
    if report:
        reporting.check_installed()
    return Ending(pictures_of(figures), report, tensorboard)


def check_figures(
    figures: bool | Sequence[PartSpec], detectors: Mapping[str, Mapping[str, Detector]]
) -> None:
    """Raise `UserError` for a figure that is named and that none of the detectors has."""
    if isinstance(figures, bool):
        return
    for request in pictures_of(figures):
        applies = KINDS[request.kind].applies
        subjects = [one for by_label in detectors.values() for one in by_label.values()]
        if subjects and not any(map(applies, subjects)):
            raise UserError(
                f"figures.{request.kind}: none of the detectors is a mean of several "
                "({name: mean, scores: [...]}), whose members it compares"
            )


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Return how a command is given here: by its script if the folder has it, or `robust-ood`."""
    script = f"python {name}.py" if Path(f"{name}.py").exists() else f"robust-ood {name}"
    return f"{script} {shlex.join(arguments)}"


def present(folder: Path, grid: Grid, ending: Ending, console: Console) -> None:
    """Draw the pictures that the folder lacks, write the report there, and say where it is."""
    # Pictures of an earlier evaluation may be out of date.
    if ending.pictures or (folder / "figures").is_dir():
        many = images_needed(folder, ending.pictures)
        scene = set_scene(grid.data, grid.attacks, grid.limit, grid.device, many)
        with console.status("drawing figures") as status:
            progress = _StatusProgress(status)
            for model in grid.models:
                grid.bring(model)
                draw_into(folder, model.name, model.detectors, scene, ending.pictures, progress)
    if ending.report:
        page = reporting.write_report([folder], tensorboard=ending.tensorboard)
        console.print(plain(f"wrote {page}"))
