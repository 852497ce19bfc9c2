"""The report of a training run: what it logged, as one page."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from robust_ood.reporting.facts import Fact
from robust_ood.reporting.figures.canvas import Figure
from robust_ood.reporting.figures.training import group_of, training_figures
from robust_ood.reporting.page import check_output, move_into_place, resource, write_page
from robust_ood.reporting.training_run import SPEED, TrainingRun, read_run
from robust_ood.writing import naming

COLUMNS = ("number", "first", "best", "at step", "last")


def write(folder: Path, output: Path | None = None) -> Path:
    """Write the report; see `robust_ood.reporting.write_training_report`."""
    run = read_run(folder)
    path = output or folder / "report.html"
    figures_folder = path.with_name(f"{path.stem}_files")
    check_output(path, figures_folder)
    figures = list(training_figures(run.curves, run.alarms()))
    text = page(run, figures, figures_folder.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # All that may fail is done beside the earlier report; then files are only moved.
    with TemporaryDirectory(".partial", ".report.", path.parent, ignore_cleanup_errors=True) as new:
        made = Path(new)
        with naming(made):
            write_page(made, text, figures)
        move_into_place(made, path, figures_folder)
    return path


def page(run: TrainingRun, figures: list[Figure], figures_folder: str) -> str:
    """Return the HTML text.

    Args:
        run: what its folder says.
        figures: in order.
        figures_folder: the folder of the figures' files, relative to the page.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(resource("training.html.j2")).render(
        css=Markup(resource("page.css")),
        title=f"Training run {run.name}",
        finding=_finding(run),
        warnings=_warnings(run),
        columns=COLUMNS,
        rows=table(run),
        figures=[(figure, Markup(figure.svg)) for figure in figures],
        figures_folder=figures_folder,
        facts=_facts(run),
    )


def table(run: TrainingRun) -> list[list[str]]:
    """Return a row for each logged number: its name, first, best, that one's step, and last."""
    rows = []
    for name, curve in run.curves.items():
        group = group_of(name)
        if group is None or not curve:
            continue
        finite = [(step, value) for step, value in curve if math.isfinite(value)]
        best = "-"
        step = "-"
        if finite and group != "learning-rate":
            sign = -1 if group == "loss" else 1
            at, value = max(finite, key=lambda pair: sign * pair[1])
            best = f"{value:.4g}"
            step = str(at)
        rows.append([name, f"{curve[0][1]:.4g}", best, step, f"{curve[-1][1]:.4g}"])
    return rows


def _finding(run: TrainingRun) -> str:
    """Say in one sentence how far the run is, and what it reached."""
    last = [curve[-1][0] for name, curve in run.curves.items() if name != SPEED]
    steps = max(last) + 1  # rows count them from 0
    parts = [f"{run.epochs} epochs begun, {steps} steps"]
    if not math.isnan(run.seconds):
        parts.append(f"{run.seconds / 60:.1f} minutes")
    for name, words in (("val/accuracy", "accuracy"), ("val/robust_auroc", "robust AUROC")):
        if name in run.curves:
            parts.append(f"validation {words} {run.curves[name][-1][1]:.3f}")
    return ", ".join(parts) + "."


def _warnings(run: TrainingRun) -> list[str]:
    warnings = []
    alarms = run.alarms()
    if alarms:
        listed = ", ".join(map(str, alarms))
        warnings.append(
            f"catastrophic overfitting at step {listed}: under ten steps of attack little is left "
            "of what a single step leaves; see fgsm and pgd below"
        )
    for name, curve in run.curves.items():
        for step, value in curve:
            if name.startswith("train/") and not math.isfinite(value):
                warnings.append(f"{name} is not finite at step {step}")
                break
    return warnings


def _facts(run: TrainingRun) -> list[Fact]:
    facts = []
    if run.checkpoints:
        facts.append(Fact("checkpoints", ", ".join(run.checkpoints), verbatim=False))
    if SPEED in run.curves:
        speeds = sorted(value for _, value in run.curves[SPEED])
        median = f"{speeds[len(speeds) // 2]:,.0f} images a second (median)"
        facts.append(Fact("speed", median, verbatim=False))
    facts.append(Fact("TensorBoard", "tensorboard --logdir on this folder", verbatim=False))
    if run.config:
        facts.append(Fact("config", run.config.strip(), verbatim=True))
    return facts
