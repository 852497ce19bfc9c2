"""Data: named sets of images, loaders whose batches are pure functions of their keys, and the Lightning module."""

from robust_ood.data.arrays import load_arrays
from robust_ood.data.catalogue import EMBEDDED, load_set
from robust_ood.data.loaders import Batch, EvaluationLoader, TrainingLoader, to_float
from robust_ood.data.module import Group, OODData
from robust_ood.data.sets import ImageSet

__all__ = [
    "EMBEDDED",
    "Batch",
    "EvaluationLoader",
    "Group",
    "ImageSet",
    "OODData",
    "TrainingLoader",
    "load_arrays",
    "load_set",
    "to_float",
]
