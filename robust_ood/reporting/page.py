"""The page: everything of a report in one HTML file, its figures also as PNG and CSV beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from robust_ood.errors import UserError
from robust_ood.evaluation.terminal import describe_failure
from robust_ood.reporting import gallery, summary, tables
from robust_ood.reporting.comparison import comparisons
from robust_ood.reporting.definitions import DEFINITIONS
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.source import Source, read
from robust_ood.writing import replace_file


class Section(NamedTuple):
    """Figures of one kind. folded: show the first and fold the others."""

    name: str
    title: str
    words: str
    figures: list[Figure]
    folded: bool = True


_SECTIONS: tuple[tuple[str, str, str, Callable[[Source], Iterator[Figure]]], ...] = (
    (
        "scores",
        "Score distributions",
        "Where an attack moves the scores.",
        gallery.histogram_figures,
    ),
    ("norm", "AUROC against perturbation norm", "How little it takes.", gallery.curve_figures),
    ("shifts", "Score shifts under one step", "What PRO and ODIN live on.", gallery.shift_figures),
    (
        "landscapes",
        "Score landscapes",
        "How the score changes around single images.",
        gallery.landscape_figures,
    ),
    (
        "images",
        "Attacked images",
        "What the attack did, to the image and to the score.",
        gallery.strip_figures,
    ),
)


def write(
    folders: Sequence[Path], output: Path | None = None, *, tensorboard: bool = False
) -> Path:
    """Write a report; see `robust_ood.reporting.write_report`."""
    source = read(folders)
    path = output or folders[0] / "report.html"
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise UserError(f"output: {path} is no HTML file; a name that ends in .html is wanted")
    beside = path.with_name(f"{path.stem}_files")
    radius = list(gallery.radius_figures(source))
    sections = [
        Section(name, title, words, list(draw(source))) for name, title, words, draw in _SECTIONS
    ]
    sections = [section for section in sections if section.figures]
    beside.mkdir(parents=True, exist_ok=True)
    figures = [*radius, *(figure for section in sections for figure in section.figures)]
    for figure in figures:
        replace_file(beside / f"{figure.name}.png", figure.png)
        replace_file(beside / f"{figure.name}.csv", figure.csv())
    replace_file(path, page(source, radius, sections, beside.name))
    if tensorboard:
        from robust_ood.reporting import board  # TensorBoard takes a second to import

        board.log(beside / "tensorboard", source, figures)
    return path


def page(source: Source, radius: Sequence[Figure], sections: Sequence[Section], beside: str) -> str:
    """Return the HTML text.

    Args:
        source: the results.
        radius: figures of AUROC against radius.
        sections: the other figures.
        beside: the folder of the figures' files, relative to the page.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["whole"] = _whole
    text = {name: _resource(name) for name in ("page.html.j2", "page.css", "page.js")}
    results = source.results
    tested = all(env.get("sanity", env.get("checks")) is True for _, env in source.environments)
    return environment.from_string(text["page.html.j2"]).render(
        css=Markup(text["page.css"]),
        js=Markup(text["page.js"]),
        title=f"What survived: {', '.join(source.models)}",
        source=source,
        findings=summary.sentences(source),
        caveats=summary.caveats(source),
        warnings=list(dict.fromkeys(results.warnings)),
        tested=tested,
        failures=[*map(describe_failure, results.failures), *gallery.failures(source)],
        survival=tables.survival(source),
        by_attack=tables.by_attack(source),
        comparisons=comparisons(source),
        accuracies=tables.accuracies(source),
        metrics=tables.metrics(source),
        winners=tables.winners(source),
        recipes=tables.recipes(source),
        radius=[(figure, Markup(figure.svg)) for figure in radius],
        sections=[
            (section, [(figure, Markup(figure.svg)) for figure in section.figures])
            for section in sections
        ],
        scored=any(section.name == "scores" for section in sections),
        definitions=DEFINITIONS,
        environments=[(models, _facts(environment)) for models, environment in source.environments],
        beside=beside,
    )


def _whole(words: str) -> str:
    """Return words whose numbers stay on one line with their signs."""
    gap = "\N{NO-BREAK SPACE}"
    return words.replace(" %", f"{gap}%").replace(
        " \N{RIGHTWARDS ARROW} ", f"{gap}\N{RIGHTWARDS ARROW}{gap}"
    )


def _facts(environment: dict[str, object]) -> list[tuple[str, str, bool]]:
    """Return name and text of each entry, and whether the text is to be shown as it is written."""
    facts = []
    for name, value in environment.items():
        if name == "config" and isinstance(value, dict):
            text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()
        elif isinstance(value, dict):
            entries = {
                key: ", ".join(entry) if isinstance(entry, list) else entry
                for key, entry in value.items()
            }
            text = "; ".join(f"{key} {entry}" for key, entry in entries.items())
        else:
            text = value if isinstance(value, str) else json.dumps(value)
        facts.append((name, text, name in ("command", "config")))
    return facts


def _resource(name: str) -> str:
    return (
        files("robust_ood.reporting")
        .joinpath("template")
        .joinpath(name)
        .read_text(encoding="utf-8")
    )
