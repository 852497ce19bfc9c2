"""The report of the OOD attack on encoders: its table and figures, as one page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from robust_ood.evaluation.encoder_results import SIDES, EncoderResults
from robust_ood.evaluation.terminal import describe_failure
from robust_ood.reporting.facts import facts_of
from robust_ood.reporting.figures import encoder
from robust_ood.reporting.figures.canvas import Figure, slug
from robust_ood.reporting.page import (
    check_output,
    move_into_place,
    resource,
    write_page,
)
from robust_ood.writing import naming

_COLUMNS = (
    "start",
    "matched",
    "detector",
    "pairs",
    "AUROC, starts",
    "AUROC, generated",
    "MAPE, mean",
    "median",
    "pairs below 1 %",
)


def write(folder: Path, output: Path | None = None) -> Path:
    """Write the report; see `robust_ood.reporting.write_encoder_report`."""
    results = EncoderResults.read(folder)
    path = output or folder / "report.html"
    figures_folder = path.with_name(f"{path.stem}_files")
    check_output(path, figures_folder)
    figures = list(draw(results))
    text = page(results, figures, figures_folder.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # All that may fail is done beside the earlier report; then files are only moved.
    with TemporaryDirectory(".partial", ".report.", path.parent, ignore_cleanup_errors=True) as new:
        made = Path(new)
        with naming(made):
            write_page(made, text, figures)
        move_into_place(made, path, figures_folder)
    return path


def draw(results: EncoderResults, kind: str = "") -> Iterator[Figure]:
    """Yield the figures: pairs and losses of each attack, errors, and scores of each detector.

    Args:
        results: the rows and their arrays.
        kind: only those whose names begin so; drawing takes longer than reading.
    """
    errors: dict[str, dict[str, Any]] = {}
    subjects = {}
    for row in results.rows:
        if row.result in subjects:
            continue
        arrays = results.arrays[row.result]
        subject = _subject(row, "pairs")
        losses = _subject(row, "loss")
        subjects[row.result] = subject
        errors.setdefault(row.matched, {})[row.start] = arrays["mape"]
        if subject.name.startswith(kind):
            yield encoder.pairs(arrays, subject)
        if losses.name.startswith(kind):
            yield encoder.losses(arrays, losses)
    for matched, by_start in errors.items():
        name = f"errors-{slug(matched)}"
        if name.startswith(kind):
            yield encoder.error_histograms(by_start, matched, name)
    for row in results.rows:
        arrays = results.arrays[row.result]
        subject = _subject(row, f"scores-{slug(row.detector)}")
        if not subject.name.startswith(kind):
            continue
        scores = {side: arrays[f"scores: {row.detector}: {side}"] for side in SIDES}
        yield encoder.score_histograms(scores, row.detector, row.auroc, subject)


def _subject(row: Any, kind: str) -> encoder.Subject:
    name = f"{kind}-{row.result}-{slug(row.start, row.matched)}"
    return encoder.Subject(row.model, row.start, row.matched, name)


def page(results: EncoderResults, figures: list[Figure], figures_folder: str) -> str:
    """Return the HTML text.

    Args:
        results: the rows.
        figures: in order.
        figures_folder: the folder of the figures' files, relative to the page.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = []
    for row in results.rows:
        rows.append(
            [
                row.start,
                row.matched,
                row.detector,
                str(row.pairs),
                f"{row.auroc_start:.3f}",
                f"{row.auroc:.3f}",
                f"{row.mape_mean:.2%}",
                f"{row.mape_median:.2%}",
                f"{row.mape_below_1_percent:.0%}",
            ]
        )
    models = list(dict.fromkeys(row.model for row in results.rows))
    return environment.from_string(resource("encoder.html.j2")).render(
        css=Markup(resource("page.css")),
        title=f"What {', '.join(models)} encodes alike",
        finding=_finding(results),
        columns=_COLUMNS,
        rows=rows,
        figures=[(figure, Markup(figure.svg)) for figure in figures],
        figures_folder=figures_folder,
        failures=list(map(describe_failure, results.failures)),
        facts=facts_of(results.environment),
    )


def _finding(results: EncoderResults) -> str:
    """Say in one sentence what the attack did to which detector."""
    aurocs = np.array([row.auroc for row in results.rows])
    errors = np.array([row.mape_median for row in results.rows])
    fooled = int((aurocs < 0.6).sum())
    return (
        f"The generated images' codes are those of the inliers up to a median error of "
        f"{np.median(errors):.2%}; {fooled} of {len(aurocs)} rows have an AUROC below 0.6, where "
        "0.5 is chance."
    )
