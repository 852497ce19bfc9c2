"""Certificates by randomised smoothing: bounds that no L2 attack of a radius passes.

They are about the *smoothed* detector or classifier, the one that decides by a quantile of scores,
or by a vote, under Gaussian noise, and hold with a stated probability over the noise that was
drawn. Any detector can be certified so, by forward passes alone. Images are `(N, C, H, W)` in
[0, 1], radii and sigma in pixel fractions; noisy pixels are not clipped.
"""

from robust_ood.certify.bounds import ScoreBounds, score_bounds
from robust_ood.certify.classifier import (
    ABSTAINED,
    ClassCertificates,
    SmoothedClassifier,
    smoothed_classifier,
)
from robust_ood.certify.confidence import bonferroni, clopper_pearson_lower, draws_needed
from robust_ood.certify.rates import (
    certified_auroc,
    certified_detection_error,
    certified_fpr95,
    certified_rates,
)

__all__ = [
    "ABSTAINED",
    "ClassCertificates",
    "ScoreBounds",
    "SmoothedClassifier",
    "bonferroni",
    "certified_auroc",
    "certified_detection_error",
    "certified_fpr95",
    "certified_rates",
    "clopper_pearson_lower",
    "draws_needed",
    "score_bounds",
    "smoothed_classifier",
]
