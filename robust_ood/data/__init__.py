"""Data: named sets of images, loaders whose batches are pure functions of their keys, and the
Lightning module.
"""

from robust_ood.data.catalogue import CATALOGUE, GROUPS
from robust_ood.data.loaders import EvaluationLoader, TrainingLoader, to_float
from robust_ood.data.module import Group, OODData
from robust_ood.data.named import EMBEDDED, load_set
from robust_ood.data.reading import Batch, Reading, ReadingOptions
from robust_ood.data.sets import ImageSet
from robust_ood.data.sources.arrays import load_arrays
from robust_ood.data.sources.spec import SetSpec

__all__ = [
    "CATALOGUE",
    "EMBEDDED",
    "GROUPS",
    "Batch",
    "EvaluationLoader",
    "Group",
    "ImageSet",
    "OODData",
    "Reading",
    "ReadingOptions",
    "SetSpec",
    "TrainingLoader",
    "load_arrays",
    "load_set",
    "to_float",
]
