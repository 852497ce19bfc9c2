"""Reporting: an HTML page, figures and their data, from one or several folders of results.

Nothing here computes a score. Figures and page need the extra `report` (matplotlib and Jinja2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from robust_ood.errors import UserError
from robust_ood.names import as_path
from robust_ood.texts import shown

if TYPE_CHECKING:
    from robust_ood.reporting.recipes import Chosen

__all__ = [
    "check_installed",
    "write_encoder_report",
    "write_report",
    "write_tables",
    "write_training_report",
]

TABLE_FORMATS = ("latex", "markdown", "csv")
FIGURE_FORMATS = ("png", "svg", "pdf")

Recipes = Mapping[str, Path | str | Sequence[Path | str]]
"""Folders or patterns of folders by the name of a recipe."""

_LIBRARIES = {"matplotlib": "matplotlib", "jinja2": "Jinja2"}  # modules, and what pip calls them


def check_installed() -> None:
    """Raise `UserError` where a library that reports need is not installed."""
    missing = []
    for module, name in _LIBRARIES.items():
        if not find_spec(module):
            missing.append(name)
    if missing:
        raise UserError(
            f"report: {' and '.join(missing)} not installed; pip install 'robust-ood[report]', "
            "or evaluate with --report false"
        )


def write_report(
    folders: Sequence[Path | str] | Path | str = (),
    output: Path | str | None = None,
    *,
    tensorboard: bool = False,
    recipes: Recipes | None = None,
    figure_format: Literal["png", "svg", "pdf"] = "png",
) -> Path:
    """Write a report over folders of results and return its path.

    The folder `NAME_files/` beside `NAME.html` has each figure as PNG and its data as CSV. The same
    results give the same page. A report that cannot be written leaves the one before as it was.

    Args:
        folders: a folder with a `results.json`, or several; the report shows their models side by
            side.
        output: the page; `report.html` in the first folder by default.
        tensorboard: also write tables and figures for TensorBoard, into `NAME_files/tensorboard/`.
        recipes: by name, folders of networks that differ by their seed alone, or patterns such as
            `results/aloe-*`. The page begins with their means and deviations, and folds single
            checkpoints.
        figure_format: write each figure in this format, too.

    Raises:
        UserError: matplotlib or Jinja2 is missing; no folder; a folder whose results are missing,
            damaged or of another schema; folders of a recipe that were evaluated on other sets or
            under other attacks; an output that is not an HTML file, is a symbolic link or no
            ordinary file.
    """
    check_installed()
    _require_one_of("figure_format", figure_format, FIGURE_FORMATS)
    page = None if output is None else as_path(output, "output")
    from robust_ood.reporting.page import write  # needs matplotlib and Jinja2

    chosen = _chosen(folders, recipes)
    return write(chosen, page, tensorboard=tensorboard, figure_format=figure_format)


def write_tables(
    folders: Sequence[Path | str] | Path | str = (),
    output: Path | str = "tables",
    *,
    table_format: Literal["latex", "markdown", "csv"] = "latex",
    recipes: Recipes | None = None,
    figure_format: Literal["png", "svg", "pdf"] | None = None,
) -> list[Path]:
    """Write each table of a report into a file, for a paper, and return the paths.

    Args:
        folders: with a `results.json` each, as in `write_report`.
        output: the folder of the files; files of the same name are replaced.
        table_format: latex (with booktabs), markdown or csv (unrounded, with intervals).
        recipes: as in `write_report`.
        figure_format: also write each figure in this format.

    Raises:
        UserError: as `write_report`; an output that is no folder.
    """
    check_installed()
    _require_one_of("table_format", table_format, TABLE_FORMATS)
    if figure_format is not None:
        _require_one_of("figure_format", figure_format, FIGURE_FORMATS)
    folder = as_path(output, "output")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output: {folder} is a file; expected a folder for the tables")
    from robust_ood.reporting.page import write_tables as write  # needs matplotlib and Jinja2

    return write(_chosen(folders, recipes), folder, table_format, figure_format)


def write_encoder_report(folder: Path | str, output: Path | str | None = None) -> Path:
    """Write the report of an OOD attack on an encoder and return its path.

    As with `write_report`, the figures lie beside the page.

    Args:
        folder: of `robust-ood encoder-attack`, with an `encoder_attack.json`.
        output: the page; `report.html` in the folder by default.

    Raises:
        UserError: matplotlib or Jinja2 is missing; results that are missing or damaged; an output
            that is not an HTML file, is a symbolic link or no ordinary file.
    """
    check_installed()
    page = None if output is None else as_path(output, "output")
    from robust_ood.reporting.encoder_page import write  # needs matplotlib and Jinja2

    return write(as_path(folder, "results"), page)


def write_training_report(folder: Path | str, output: Path | str | None = None) -> Path:
    """Write the report of a training run and return its path.

    Curves of losses, clean and robust AUROC, accuracies, learning rate and speed over the steps,
    where catastrophic overfitting was seen, and the settings. The figures lie beside the page, as
    with `write_report`. The same curves are in the run's folder for TensorBoard.

    Args:
        folder: of a training run, finished or not, with a `metrics.csv`.
        output: the page; `report.html` in the folder by default.

    Raises:
        UserError: matplotlib or Jinja2 is missing; a `metrics.csv` that is missing, damaged or
            empty; an output that is not an HTML file, is a symbolic link or no ordinary file.
    """
    check_installed()
    page = None if output is None else as_path(output, "output")
    from robust_ood.reporting.training_page import write  # needs matplotlib and Jinja2

    return write(as_path(folder, "results"), page)


def _require_one_of(field: str, value: object, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise UserError(f"{field}: expected one of {', '.join(accepted)}, got {shown(value)}")


def _chosen(folders: object, recipes: Recipes | None) -> Chosen:
    """Return the folders of a report; `robust_ood.reporting.recipes` says what patterns find."""
    from robust_ood.reporting.recipes import choose_folders  # takes long to import

    if recipes is not None and not isinstance(recipes, Mapping):
        raise UserError(f"recipes: expected folders by name, got {shown(recipes)}")
    return choose_folders(_as_paths(folders), recipes or {})


def _as_paths(folders: object) -> list[Path]:
    """Return the folders that a user gave as one path or as several."""
    if isinstance(folders, str | os.PathLike):
        return [as_path(folders, "results")]
    if not isinstance(folders, Iterable):
        raise UserError(f"results: expected folders with a results.json, got {shown(folders)}")
    return [as_path(folder, "results") for folder in folders]
