"""Figures as pure functions of arrays: a drawing, the text that can replace it, and its data."""

from robust_ood.reporting.figures.canvas import Figure

__all__ = ["Figure"]
