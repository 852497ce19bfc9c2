"""What the numbers of a report mean."""

from __future__ import annotations

from typing import NamedTuple


class Definition(NamedTuple):
    """A term of the report. better: "higher", "lower", or "" where neither is better."""

    term: str
    meaning: str
    better: str = ""


DEFINITIONS = (
    Definition(
        "score",
        "The number that a detector gives an image; higher means more in-distribution. From a "
        "threshold on, the image is accepted as in-distribution.",
    ),
    Definition(
        "AUROC (auroc)",
        "Probability that an inlier's score exceeds an outlier's, ties counted half. 0.5 is "
        "chance; below it, attacked outliers look more in-distribution than attacked inliers.",
        "higher",
    ),
    Definition(
        "FPR95 (fpr95)",
        "Share of OOD images accepted at the threshold that accepts at least 95 % of the "
        "in-distribution ones; in-distribution positive, as in ODIN and ALOE.",
        "lower",
    ),
    Definition(
        "fpr95_ood_positive",
        "Share of in-distribution images rejected at the threshold that rejects at least 95 % of "
        "the OOD images; OOD positive, as in OpenOOD. Not the same number as FPR95.",
        "lower",
    ),
    Definition(
        "aupr_in, aupr_out",
        "Average precision with in-distribution, or OOD, as the positive class; both depend on how "
        "many images of each there are.",
        "higher",
    ),
    Definition(
        "detection_error",
        "The smallest mean of the two error rates over all thresholds.",
        "lower",
    ),
    Definition(
        "tpr_deployed",
        "Share of in-distribution images accepted at the threshold fixed before deployment: the "
        "one that accepts 95 % of the clean validation images (without any, of the test images).",
        "higher",
    ),
    Definition(
        "fpr_deployed",
        "Share of OOD images accepted at the same threshold.",
        "lower",
    ),
    Definition(
        "accuracy",
        "Share of in-distribution test images classified correctly; attacked, by an attack on the "
        "classifier itself.",
        "higher",
    ),
    Definition(
        "attacked",
        "Inliers are perturbed to look OOD, outliers to look in-distribution, each image within "
        "the radius and through the detector that scores it; the worst true score found counts.",
    ),
    Definition(
        "strongest attack",
        "Of all attacks of the evaluation, at any radius, the one with the lowest mean AUROC for "
        "that network, detector and group.",
    ),
    Definition(
        "near, far",
        "Groups of OOD sets as the evaluation's config names them: near sets resemble the "
        "in-distribution. A mean weights each set equally.",
    ),
    Definition(
        "full-near, full-far",
        "The same OOD sets against all inliers: covariate-shifted ones (`data.shifted`), such as "
        "corrupted images, count as inliers beside the test set, image by image. This is the "
        "full spectrum of OpenOOD v1.5.",
    ),
    Definition(
        "95 % interval",
        "How far the draw of the test images leaves a rate uncertain: exact for rates (Clopper and "
        "Pearson), DeLong's and Newcombe's for AUROC, with the threshold's own uncertainty for "
        "fpr95. It says nothing about another training run.",
    ),
    Definition(
        "radius",
        "Largest size of the perturbation, in fractions of the pixel range [0, 1]: of any pixel "
        "(Linf), or the Euclidean length (L2).",
    ),
)
