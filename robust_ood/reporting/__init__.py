"""Reporting: an HTML page, figures and their data, from one or several folders of results.

Nothing here computes a score. Figures and page need the extra `report` (matplotlib and Jinja2).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from robust_ood.errors import UserError

__all__ = ["check_installed", "write_report"]

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
    folders: Sequence[Path], output: Path | None = None, *, tensorboard: bool = False
) -> Path:
    """Write a report over folders of results and return its path.

    The folder `NAME_files/` beside `NAME.html` has each figure as PNG and its data as CSV. The same
    results give the same page.

    Args:
        folders: folders with a `results.json` each; the report shows their models side by side.
        output: the page; `report.html` in the first folder by default.
        tensorboard: also write tables and figures for TensorBoard, into `NAME_files/tensorboard/`.

    Raises:
        UserError: matplotlib or Jinja2 is missing; no folder; a folder whose results are missing,
            damaged or of another schema; an output that is not an HTML file.
    """
    check_installed()
    from robust_ood.reporting.page import write  # needs matplotlib and Jinja2

    return write(folders, output, tensorboard=tensorboard)
