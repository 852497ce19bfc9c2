"""How an item ends: its table beside the printed numbers, its figures, and a Markdown file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from robust_ood.cli.papers.plan import Plan
from robust_ood.errors import UserError
from robust_ood.evaluation.encoder_results import EncoderResults
from robust_ood.evaluation.text_tables import plain
from robust_ood.reporting import encoder_page
from robust_ood.reporting.figures import Figure
from robust_ood.reporting.formats import PlainTable, as_markdown, as_text
from robust_ood.reporting.page import SECTIONS
from robust_ood.reporting.papers.item_figures import bars, loss_histograms
from robust_ood.reporting.papers.item_table import item_table
from robust_ood.reporting.papers.measured import Measurement, read_measurements
from robust_ood.reporting.papers.published import paper
from robust_ood.reporting.report_data import read_folders
from robust_ood.texts import printable
from robust_ood.writing import replace_file


def end(plan: Plan, console: Console) -> None:
    """Print and write the table or figures of an item whose steps are finished.

    Raises: `UserError` where the results have no number or figure of the item.
    """
    item = plan.item
    folders = [plan.folder_of(name) for name in plan.recipe.reads]
    measurements = read_measurements(folders, plan.recipe.stands_for, plan.recipe.averages)
    table = item_table(
        f"{item.paper}, {item.name}: {item.title}",
        item.printed,
        measurements,
        item.metrics,
        item.only,
    )
    figures = []
    if item.draw:
        figures = _figures(plan, folders, measurements)
    if not figures and not table.lines:
        raise UserError(
            f"paper: the results of {item.paper} {item.name} have nothing that it shows"
        )
    name = f"{item.paper}-{item.name}"
    paths = _write_figures(plan.folder / name, figures)
    page = plan.folder / f"{name}.md"
    replace_file(page, _markdown(plan, table, figures, name))
    if table.lines:
        console.print(plain_lines(as_text(table)), soft_wrap=True)
    for words in notes(plan, table):
        console.print(plain(words))
    for path in paths:
        console.print(plain(f"wrote {path}"), soft_wrap=True)
    console.print(plain(f"wrote {page}"), soft_wrap=True)


def plain_lines(text: str) -> str:
    """Return a text of several lines as the terminal may show it."""
    from rich.markup import escape

    return escape("\n".join(printable(line) for line in text.splitlines()))


def notes(plan: Plan, table: PlainTable) -> list[str]:
    """Return how the numbers of a table came about: in the paper, and here."""
    words = []
    if plan.item.printed:
        title, protocol = paper(plan.item.printed["paper"])
        words += [f"{title}.", *protocol]
    if plan.recipe.note:
        words.append(f"Here: {plan.recipe.note}")
    replaced = []
    shown = " | ".join(" | ".join(line) for line in table.lines)
    for name, stands_for in plan.recipe.stands_for.items():
        last = stands_for
        if isinstance(stands_for, list):
            last = stands_for[-1]
            stands_for = " with ".join(stands_for)
        if name != stands_for and last in shown:
            replaced.append(f"{name} for {stands_for}")
    if replaced and plan.item.printed:
        words.append(f"In the place of the paper's: {', '.join(replaced)}.")
    return words


def _figures(plan: Plan, folders: list[Path], measurements: list[Measurement]) -> list[Figure]:
    """Return the figures of the sections that the item draws, and of its words."""
    figures = []
    for section in plan.item.draw:
        for figure in _section(section, folders, measurements, plan):
            title = f"{figure.name} {figure.title}"
            is_wanted = all(words in title for words in plan.item.words)
            if is_wanted and not any(words in title for words in plan.item.without):
                figures.append(figure)
    return figures


def _section(
    section: str, folders: list[Path], measurements: list[Measurement], plan: Plan
) -> Iterator[Figure]:
    if section == "bars":
        yield from bars(measurements, plan.item.metrics, plan.item.only)
    elif section == "losses":
        for folder in folders:
            yield from loss_histograms(folder)
    elif section.startswith("encoder"):
        yield from _encoder_figures(folders, section.partition(" ")[2])
    else:
        data = read_folders(folders)
        for kind in SECTIONS:
            if kind.name == section:
                yield from kind.draw(data)


def _encoder_figures(folders: list[Path], kind: str) -> Iterator[Figure]:
    """Yield the figures of encoder attacks whose names begin with a word."""
    for folder in folders:
        yield from encoder_page.draw(EncoderResults.read(folder), kind)


def _write_figures(folder: Path, figures: list[Figure]) -> list[Path]:
    paths = []
    for figure in figures:
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{figure.name}.png")
        replace_file(paths[-1], figure.png)
        replace_file(folder / f"{figure.name}.csv", figure.csv())
    return paths


def _markdown(plan: Plan, table: PlainTable, figures: list[Figure], name: str) -> str:
    """Return the item as a page."""
    lines = [f"# {plan.item.paper}, {plan.item.name}", "", f"{plan.item.title}.", ""]
    if table.lines:
        lines += [as_markdown(table)]
    for figure in figures:
        lines += [f"![{figure.alt}]({name}/{figure.name}.png)", "", f"*{figure.caption}*", ""]
    lines += [f"- {words}" for words in notes(plan, table)]
    lines += ["", "Made by:", "", "```"]
    lines += [step.line for step in plan.steps()]
    return "\n".join([*lines, "```", ""])
