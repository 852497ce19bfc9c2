"""Numbers as a report writes them."""

from __future__ import annotations


def rate(value: float) -> str:
    """Return a rate with three decimals."""
    return f"{value:.3f}"


def signed(value: float, decimals: int) -> str:
    """Return a difference with its sign, a minus sign and not a hyphen."""
    return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float) -> str:
    """Return a share in percent with one decimal."""
    return f"{100 * value:.1f} %"
