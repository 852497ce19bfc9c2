"""What an evaluation ends with: pictures that need its networks and images, and the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from robust_ood import reporting
from robust_ood.attacks import Attack
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.evaluation import Grid
from robust_ood.evaluation.pictures import draw_into, kinds_of, set_scene


def choose_figures(figures: bool | Sequence[str], report: bool, tensorboard: bool) -> list[str]:
    """Return the kinds of pictures to draw; called before any work, it refuses what could not be
    done after it.
    """
    if tensorboard and not report:
        raise UserError("tensorboard: true shows what a report has; it needs --report true")
    if report:
        reporting.check_installed()
    return kinds_of(figures)


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Return how a command is given here: by its script where the current folder has it, else by
    `robust-ood`.
    """
    script = f"python {name}.py" if Path(f"{name}.py").exists() else f"robust-ood {name}"
    return f"{script} {shlex.join(arguments)}"


def present(
    folder: Path,
    grid: Grid,
    data: OODData,
    attacks: Mapping[str, Attack],
    *,
    kinds: Sequence[str],
    report: bool,
    tensorboard: bool,
    limit: int | None,
    device: torch.device | str,
    console: Console,
) -> None:
    """Draw what is missing of the pictures into the folder, write the report there, and say where
    it is.
    """
    if kinds or (folder / "figures").is_dir():  # those of an earlier evaluation may be out of date
        scene = set_scene(data, attacks, limit, device)
        with console.status("drawing figures") as status:
            for plan in grid.plans:
                subject = plan.subject
                grid.bring(subject)
                draw_into(
                    folder,
                    subject.name,
                    subject.detectors,
                    scene,
                    kinds,
                    lambda step: status.update(step),
                )
    if report:
        console.print(f"wrote {reporting.write_report([folder], tensorboard=tensorboard)}")
