"""Evaluation: detectors against attacks on data sets, and the rows that say what survived."""

from robust_ood.evaluation.grid import evaluate
from robust_ood.evaluation.results import Accuracy, Results, Row
from robust_ood.evaluation.table import print_results

__all__ = ["Accuracy", "Results", "Row", "evaluate", "print_results"]
