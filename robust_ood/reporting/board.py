"""A report's tables and figures for TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from robust_ood.names import digest_of, file_name
from robust_ood.reporting import summary, tables
from robust_ood.reporting.decisions import decision_sentences
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.report_data import ReportData

# TensorBoard counts steps in integers: a step of a curve over the radius is this part of the pixel
# range.
STEP = 0.001

_REPORT = "report"  # the run of what is no network's


def log(folder: Path, data: ReportData, figures: Sequence[Figure]) -> None:
    """Write a report's content for TensorBoard.

    Each network is a run, so that TensorBoard overlays them: AUROC under the strongest attack at
    each radius, with `STEP` a step, and accuracies. The run "report" has the findings, the
    warnings, the tables and the figures.

    Args:
        folder: a folder that is empty; each run gets a folder in it.
        data: the results.
        figures: those of the page.
    """
    for model, run in _runs(data.models).items():
        with SummaryWriter(folder / run) as writer:
            _log_rates(writer, data, model)
    with SummaryWriter(folder / _REPORT) as writer:
        _log_texts(writer, data)
        for figure in figures:
            pixels = np.asarray(Image.open(io.BytesIO(figure.png)).convert("RGB"))
            writer.add_image(figure.title, pixels, dataformats="HWC")


def _runs(models: Iterable[str]) -> dict[str, str]:
    """Return the folder of each model's run, one of its own also where capitals do not count."""
    taken = {_REPORT}
    runs = {}
    for model in models:
        run = file_name(model)
        if run.lower() in taken:
            run = f"{run}-{digest_of(model)}"
        taken.add(run.lower())
        runs[model] = run
    return runs


def markdown(table: tables.Table) -> str:
    """Return a table as Markdown; further lines of a cell follow its first one in brackets."""
    titles = table.full_titles()
    lines = [_line(titles), _line(["---"] * len(titles))]
    for row in table.rows:
        lines.append(_line(map(_cell, row)))
    return "\n".join(lines)


def _cell(cell: tables.TableCell) -> str:
    if not cell.note:
        return cell.text
    return f"{cell.text} ({', '.join(cell.note.splitlines())})"


def _line(texts: Iterable[str]) -> str:
    # A bar would end the cell.
    escaped = [text.replace("|", "/") for text in texts]
    return f"| {' | '.join(escaped)} |"


def _log_texts(writer: SummaryWriter, data: ReportData) -> None:
    warnings = [*summary.caveats(data), *data.results.warnings]
    findings = [*decision_sentences(data), *summary.sentences(data)]
    writer.add_text("findings", _bullets(findings))
    writer.add_text("warnings", _bullets(warnings))
    for table in (tables.survival(data), tables.accuracies(data), *tables.by_attack(data)):
        writer.add_text(f"tables/{table.caption}", f"{table.legend}\n\n{markdown(table)}")


def _bullets(sentences: Sequence[str]) -> str:
    if not sentences:
        return "none"
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _log_rates(writer: SummaryWriter, data: ReportData, model: str) -> None:
    for norm in data.norms:
        for group in data.groups:
            for detector in data.detectors:
                tag = f"AUROC, {group} OOD, {norm}/{detector}"
                for radius, auroc in data.by_radius(model, detector, group, norm):
                    writer.add_scalar(tag, auroc, round(radius / STEP))
    for row in data.results.classification:
        if row.model == model:
            writer.add_scalar(f"accuracy/{tables.attack_name(row.attack)}", row.accuracy, 0)
