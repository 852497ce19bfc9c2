"""Evaluation: detectors against attacks on data sets, and the rows that say what survived."""

from robust_ood.evaluation.grid import Grid, evaluate
from robust_ood.evaluation.results import Accuracy, Results, Row
from robust_ood.evaluation.scoring import CHUNK
from robust_ood.evaluation.store import FolderStore, Store, read_cell
from robust_ood.evaluation.terminal import Progress, ProgressBar, print_results

__all__ = [
    "CHUNK",
    "Accuracy",
    "FolderStore",
    "Grid",
    "Progress",
    "ProgressBar",
    "Results",
    "Row",
    "Store",
    "evaluate",
    "print_results",
    "read_cell",
]
