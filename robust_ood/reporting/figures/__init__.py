"""Figures as pure functions of arrays: each gives a drawing, the words that replace it, and its
data.
"""

from robust_ood.reporting.figures.canvas import Figure

__all__ = ["Figure"]
