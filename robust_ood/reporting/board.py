"""A report's tables and figures for TensorBoard."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from robust_ood.reporting import summary, tables
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.source import Source

STEP = 0.001  # of the pixel range: what a step of a curve over the radius stands for, as TensorBoard counts in integers


def log(folder: Path, source: Source, figures: Sequence[Figure]) -> None:
    """Write a report's content for TensorBoard, in place of what an earlier report wrote there.

    Each network is a run, so that TensorBoard lays networks over each other: AUROC under the
    strongest attack of each radius, `STEP` a step, and accuracies. The run "report" has the
    findings, the warnings, the tables and the figures.

    Args:
        folder: of nothing but this; each run has a folder in it.
        source: the results.
        figures: those of the page.
    """
    for events in folder.rglob("events.out.tfevents.*"):
        events.unlink()
    for model in source.models:
        with SummaryWriter(folder / re.sub(r"[^\w.+() -]", "_", model)) as writer:
            _log_rates(writer, source, model)
    with SummaryWriter(folder / "report") as writer:
        doubts = [*summary.caveats(source), *source.results.warnings]
        for name, sentences in (("findings", summary.sentences(source)), ("warnings", doubts)):
            writer.add_text(name, "\n".join(f"- {sentence}" for sentence in sentences) or "none")
        for table in (
            tables.survival(source),
            tables.accuracies(source),
            *tables.by_attack(source),
        ):
            writer.add_text(f"tables/{table.caption}", markdown(table))
        for figure in figures:
            pixels = np.asarray(Image.open(io.BytesIO(figure.png)).convert("RGB"))
            writer.add_image(figure.title, pixels, dataformats="HWC")


def markdown(table: tables.Table) -> str:
    """Return a table as Markdown: further lines of a cell behind its first, in brackets."""
    groups = [title for title, span in table.heads for _ in range(span)] or [""] * len(
        table.columns
    )
    heads = [
        f"{group} {title}".strip() for group, (title, _) in zip(groups, table.columns, strict=True)
    ]
    rows = [
        [f"{c.text} ({', '.join(c.note.splitlines())})" if c.note else c.text for c in row]
        for row in table.rows
    ]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in lines)


def _log_rates(writer: SummaryWriter, source: Source, model: str) -> None:
    for norm in source.norms:
        for group in source.groups:
            for detector in source.detectors:
                for radius, auroc in source.by_radius(model, detector, group, norm):
                    writer.add_scalar(
                        f"AUROC, {group} OOD, {norm}/{detector}", auroc, round(radius / STEP)
                    )
    for row in source.results.classification:
        if row.model == model:
            attack = "clean" if row.attack == "none" else row.attack
            writer.add_scalar(f"accuracy/{attack}", row.accuracy, 0)
