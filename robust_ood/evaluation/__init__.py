"""Evaluation: detectors against attacks on data sets, and the rows that say what survived."""

from robust_ood.evaluation.batches import CHUNK
from robust_ood.evaluation.grid import Grid, evaluate
from robust_ood.evaluation.progress import Progress, ProgressBar
from robust_ood.evaluation.records import Accuracy, Row
from robust_ood.evaluation.results import Results
from robust_ood.evaluation.store import FolderStore, Store, read_cell
from robust_ood.evaluation.table import print_results

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
