"""Tables of a terminal: tight, without markup, rates without their leading zero."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from robust_ood.texts import printable


def plain(text: str) -> Text:
    """Return a text that a user named as the terminal may show it: no markup, no escape codes."""
    return Text(printable(text))


def empty_table(title: str, names: Sequence[str] = (), numbers: Sequence[str] = ()) -> Table:
    """Return a table without lines, tight, so that its cells fit into 80 columns.

    Args:
        title: above it.
        names: titles of columns of names, which fold.
        numbers: titles of columns of numbers, which do not.
    """
    table = Table(
        title=plain(title),
        min_width=min(len(title), 60),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def rate(value: float) -> str:
    """Return three decimals without the leading zero: `.987`, and `1.00` for one."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0") else text[:4]


def counted(number: int, noun: str) -> str:
    """Return a number of things."""
    ending = "" if number == 1 else "s"
    return f"{number} {noun}{ending}"
