"""The page: a whole report in one HTML file, with its figures as PNG and CSV in a folder beside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from robust_ood.errors import UserError
from robust_ood.evaluation.terminal import describe_failure
from robust_ood.reporting import gallery, summary, tables
from robust_ood.reporting.brackets import bracket_figures, bracket_sentences
from robust_ood.reporting.decisions import decision_sentences
from robust_ood.reporting.definitions import DEFINITIONS
from robust_ood.reporting.doubts import warnings_of
from robust_ood.reporting.facts import Fact, facts_of
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.figures.canvas import slug
from robust_ood.reporting.papers.checkpoints import checked_claims
from robust_ood.reporting.papers.comparison import comparisons
from robust_ood.reporting.recipes import (
    Chosen,
    first_checkpoints,
    headline,
    incomplete_means,
    read_recipes,
    single_checkpoints,
    words_on_checkpoints,
)
from robust_ood.reporting.report_data import ReportData
from robust_ood.reporting.roc_gallery import roc_figures
from robust_ood.reporting.seed_sentences import detector_sentences
from robust_ood.reporting.shifted import shifted_accuracies
from robust_ood.reporting.table_files import single_tables, table_files
from robust_ood.reporting.transfer import transfers
from robust_ood.writing import naming, replace_file

_PAGE = "page.html"
_BESIDE = "files"
_TENSORBOARD = "tensorboard"
SINGLE = "auroc by radius of single checkpoints"


class SectionKind(NamedTuple):
    """A section of figures: how it is called, what draws it, and whether that draws means."""

    name: str
    title: str
    words: str
    draw: Callable[[ReportData], Iterator[Figure]]
    has_means: bool = False


class Section(NamedTuple):
    """Figures of one kind; the page shows the first and folds the others."""

    name: str
    title: str
    words: str
    figures: list[Figure]


SECTIONS = (
    SectionKind(
        "brackets",
        "Certified and attacked",
        "The left end of a bar is proved, the right end is what an attack reached. The truth is in "
        "between.",
        bracket_figures,
    ),
    SectionKind(
        "roc",
        "ROC curves",
        "What each threshold would give: how many inliers stay, and how many OOD images slip "
        "through. Under attack, a curve near the thin line is a coin, one below it is worse.",
        roc_figures,
        has_means=True,
    ),
    SectionKind(
        "scores",
        "Score distributions",
        "Which scores inliers and OOD images get, before and after the attack. A detector works "
        "where the two do not overlap.",
        gallery.histogram_figures,
    ),
    SectionKind(
        "norm",
        "AUROC against perturbation norm",
        "How small a change of the images is enough to fool a detector. Lines that fall near the "
        "left edge are fooled by changes that nobody sees.",
        gallery.curve_figures,
    ),
    SectionKind(
        "traces",
        "Scores against perturbation norm",
        "How each image's score moves.",
        gallery.trace_figures,
    ),
    SectionKind(
        "shifts",
        "Score shifts under one step",
        "How much one small step against the score changes it. Detectors that perturb the image "
        "(ODIN, PRO) need OOD images to move further than inliers.",
        gallery.shift_figures,
    ),
    SectionKind(
        "landscapes",
        "Score landscapes",
        "How the score changes when random noise is added to an image. Flat maps withstand noise; "
        "they say nothing about attacks.",
        gallery.landscape_figures,
    ),
    SectionKind(
        "images",
        "Attacked images",
        "What the attack changed in an image, and what became of its score.",
        gallery.strip_figures,
    ),
    SectionKind(
        "errors",
        "Worst mistakes",
        "The clean images that a detector gets most wrong: inliers that look foreign to it, and "
        "OOD images that it takes for inliers.",
        gallery.error_figures,
    ),
)


def write(
    chosen: Chosen,
    output: Path | None = None,
    *,
    tensorboard: bool = False,
    figure_format: str = "png",
) -> Path:
    """Write a report; see `robust_ood.reporting.write_report`."""
    data = read_recipes(chosen)
    path = output or chosen.folders[0] / "report.html"
    figures_folder = path.with_name(f"{path.stem}_files")
    check_output(path, figures_folder)
    radius_figures = draw_radius(data)
    sections = _draw_sections(data)
    figures = list(radius_figures)
    for section in sections:
        figures += section.figures
    text = page(data, radius_figures, sections, figures_folder.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    # All that may fail is done beside the earlier report; then files are only moved.
    with TemporaryDirectory(".partial", ".report.", path.parent, ignore_cleanup_errors=True) as new:
        made = Path(new)
        with naming(made):
            write_figures(made, figures, figure_format)
            if tensorboard:
                _write_board(made, figures, data)
            (made / _PAGE).write_text(text, encoding="utf-8", newline="\n")
        move_into_place(made, path, figures_folder)
    return path


def check_output(path: Path, figures_folder: Path) -> None:
    """Raise `UserError` for a page that would take the place of what is no page."""
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UserError(f"output: {path} is no HTML file; expected a file name that ends in .html")
    if figures_folder.exists() and not figures_folder.is_dir():
        raise UserError(f"output: {figures_folder} is no folder; expected one for the figures")
    _check_replaceable(path)


def _check_replaceable(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(
            f"output: {path} is a symbolic link or no ordinary file; remove it, or take another"
        )


def write_tables(
    chosen: Chosen, folder: Path, kind: str, figure_format: str | None = None
) -> list[Path]:
    """Write tables and figures alone; see `robust_ood.reporting.write_tables`."""
    data = read_recipes(chosen)
    contents: dict[str, bytes] = {}
    for name, text in table_files(data, kind).items():
        contents[name] = text.encode(errors="backslashreplace")
    if figure_format is not None:
        for figure in draw_figures(data):
            contents[f"{figure.name}.{figure_format}"] = figure.file(figure_format)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in contents.items():
        paths.append(folder / name)
        replace_file(folder / name, content)
    return paths


def draw_figures(data: ReportData) -> list[Figure]:
    """Return all figures of a report."""
    figures = draw_radius(data)
    for section in _draw_sections(data):
        figures += section.figures
    return figures


def draw_radius(data: ReportData) -> list[Figure]:
    """Return AUROC against radius: recipes as means with bands; then their single checkpoints."""
    figures = list(gallery.radius_figures(headline(data)))
    single = single_checkpoints(data)
    if single is not None:
        figures += gallery.radius_figures(single, SINGLE)
    return figures


def _write_board(folder: Path, figures: Sequence[Figure], data: ReportData) -> None:
    from robust_ood.reporting import board  # TensorBoard takes a second to import

    board.log(folder / _BESIDE / _TENSORBOARD, data, figures)


def write_page(folder: Path, text: str, figures: Sequence[Figure]) -> None:
    """Write a page and its figures into a folder, from which `move_into_place` takes them."""
    write_figures(folder, figures)
    (folder / _PAGE).write_text(text, encoding="utf-8", newline="\n")


def write_figures(folder: Path, figures: Sequence[Figure], kind: str = "png") -> None:
    """Write each figure as PNG (and as `kind`), and its data as CSV, into `_BESIDE` of a folder."""
    beside = folder / _BESIDE
    beside.mkdir()
    for figure in figures:
        if kind != "png":
            (beside / f"{figure.name}.{kind}").write_bytes(figure.file(kind))
        (beside / f"{figure.name}.png").write_bytes(figure.png)
        (beside / f"{figure.name}.csv").write_text(figure.csv(), encoding="utf-8", newline="\n")


def move_into_place(made: Path, path: Path, figures_folder: Path) -> None:
    """Move a report to its place: the files beside it first, the page last."""
    targets = {}
    for file in sorted((made / _BESIDE).rglob("*")):
        if file.is_file():
            targets[file] = figures_folder / file.relative_to(made / _BESIDE)
    for target in targets.values():
        _check_replaceable(target)
    if (made / _BESIDE / _TENSORBOARD).is_dir():
        # TensorBoard would show the events of an earlier report with the new ones.
        for events in (figures_folder / _TENSORBOARD).rglob("events.out.tfevents.*"):
            events.unlink()
    figures_folder.mkdir(exist_ok=True)
    for file, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    os.replace(made / _PAGE, path)


def _draw_sections(data: ReportData) -> list[Section]:
    """Return the sections that have figures."""
    sections = []
    single = first_checkpoints(data)
    for kind in SECTIONS:
        figures = list(kind.draw(data if kind.has_means else single))
        words = kind.words if kind.has_means else kind.words + words_on_checkpoints(data)
        if figures:
            sections.append(Section(kind.name, kind.title, words, figures))
    return sections


def page(
    data: ReportData, radius: Sequence[Figure], sections: Sequence[Section], figures_folder: str
) -> str:
    """Return the HTML text.

    Args:
        data: the results.
        radius: figures of AUROC against radius.
        sections: the other figures.
        figures_folder: the folder of the figures' files, relative to the page.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["whole"] = _whole
    template = environment.from_string(resource("table.html.j2") + resource("page.html.j2"))
    first = headline(data)
    findings = [*summary.sentences(first), *detector_sentences(data), *bracket_sentences(data)]
    return template.render(
        css=Markup(resource("page.css")),
        js=Markup(resource("page.js")),
        title=f"What survived: {', '.join(first.models)}",
        detectors=data.detectors,
        **_trust(data),
        **_tables(data, first),
        **_figures(radius, sections, figures_folder),
        decisions=list(decision_sentences(first)),
        findings=findings,
        comparisons=comparisons(first),
        claims=checked_claims(data.environments),
        definitions=DEFINITIONS,
        environments=_environments(data),
    )


def _trust(data: ReportData) -> dict[str, Any]:
    """Return what the section on whether the numbers can be trusted shows."""
    failures = list(map(describe_failure, data.results.failures))
    return {
        "caveats": [*summary.caveats(data), *incomplete_means(data)],
        "warnings": warnings_of(data),
        "failures": failures + gallery.failures(data),
        "tested": all(setting is True for setting in summary.sanity_settings(data)),
    }


def _tables(data: ReportData, first: ReportData) -> dict[str, Any]:
    """Return the tables. first: the data of the headlines, in which recipes are means."""
    return {
        "survival": tables.survival(first),
        "by_attack": tables.by_attack(first),
        "single": single_tables(data),
        "accuracies": [tables.accuracies(first), shifted_accuracies(data)],
        "metrics": tables.metrics(data),
        "losses": tables.losses(data),
        "transfers": transfers(data),
        "winners": tables.winners(data),
        "recipes": tables.recipes(data),
    }


def _figures(radius: Sequence[Figure], sections: Sequence[Section], folder: str) -> dict[str, Any]:
    drawn = [(section, _with_svg(section.figures)) for section in sections]
    single = [figure for figure in radius if figure.name.startswith(slug(SINGLE))]
    return {
        "radius": _with_svg([figure for figure in radius if figure not in single]),
        "single_radius": _with_svg(single),
        "sections": drawn,
        "scored": any(section.name == "scores" for section in sections),
        "figures_folder": quote(folder),
    }


def _with_svg(figures: Sequence[Figure]) -> list[tuple[Figure, Markup]]:
    """Return each figure with its drawing, marked as HTML so that the template keeps it."""
    return [(figure, Markup(figure.svg)) for figure in figures]


def _whole(words: str) -> str:
    """Return words whose numbers are not separated from their signs by a line break."""
    words = words.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    space = "\N{NO-BREAK SPACE}"
    arrow = "\N{RIGHTWARDS ARROW}"
    return words.replace(" %", f"{space}%").replace(f" {arrow} ", f"{space}{arrow}{space}")


def _environments(data: ReportData) -> list[tuple[str, list[Fact]]]:
    """Return the models of each folder with the entries of its environment."""
    environments = []
    for models, entries in data.environments:
        environments.append((models, facts_of(entries)))
    return environments


def resource(name: str) -> str:
    """Return the text of a file of the template."""
    path = files("robust_ood.reporting").joinpath("template").joinpath(name)
    return path.read_text(encoding="utf-8")
