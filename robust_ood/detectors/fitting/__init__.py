"""How detectors learn from images: passes over loaders, and the statistics that they accumulate."""

from robust_ood.detectors.fitting.image_keys import image_digests, image_keys
from robust_ood.detectors.fitting.passes import Pass, Rounds, SeenBatch, Split, fit, together

__all__ = [
    "Pass",
    "Rounds",
    "SeenBatch",
    "Split",
    "fit",
    "image_digests",
    "image_keys",
    "together",
]
