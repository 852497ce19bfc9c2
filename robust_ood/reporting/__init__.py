"""Reporting: an HTML page, figures and their data, from one or several folders of results.

Nothing here computes a score. Figures and page need the extra `report` (matplotlib and Jinja2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from robust_ood.errors import UserError
from robust_ood.names import as_path
from robust_ood.texts import shown

__all__ = ["check_installed", "write_encoder_report", "write_report"]

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
    folders: Sequence[Path | str] | Path | str,
    output: Path | str | None = None,
    *,
    tensorboard: bool = False,
) -> Path:
    """Write a report over folders of results and return its path.

    The folder `NAME_files/` beside `NAME.html` has each figure as PNG and its data as CSV. The same
    results give the same page. A report that cannot be written leaves the one before as it was.

    Args:
        folders: a folder with a `results.json`, or several; the report shows their models side by
            side.
        output: the page; `report.html` in the first folder by default.
        tensorboard: also write tables and figures for TensorBoard, into `NAME_files/tensorboard/`.

    Raises:
        UserError: matplotlib or Jinja2 is missing; no folder; a folder whose results are missing,
            damaged or of another schema; an output that is not an HTML file, is a symbolic link
            or no ordinary file.
    """
    check_installed()
    chosen = _as_paths(folders)
    page = None if output is None else as_path(output, "output")
    from robust_ood.reporting.page import write  # needs matplotlib and Jinja2

    return write(chosen, page, tensorboard=tensorboard)


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


def _as_paths(folders: object) -> list[Path]:
    """Return the folders that a user gave as one path or as several."""
    if isinstance(folders, str | os.PathLike):
        return [as_path(folders, "results")]
    if not isinstance(folders, Iterable):
        raise UserError(f"results: expected folders with a results.json, got {shown(folders)}")
    return [as_path(folder, "results") for folder in folders]
