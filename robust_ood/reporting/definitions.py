"""What every number of a report means: `(term, meaning, which way is better)`."""

from __future__ import annotations

DEFINITIONS: tuple[tuple[str, str, str], ...] = (
    ("score", "What a detector gives an image, which is accepted as in-distribution from a threshold on; higher means "
     "more in-distribution.", ""),
    ("AUROC (auroc)", "Chance that an inlier's score exceeds an outlier's, ties counted half. 0.5 is a coin; below, "
     "attacked outliers look more in-distribution than attacked inliers.", "higher"),
    ("FPR95 (fpr95)", "Share of OOD images accepted at the threshold that accepts at least 95 % of the in-distribution "
     "ones; in-distribution positive, as in ODIN and ALOE.", "lower"),
    ("fpr95_ood_positive", "Share of in-distribution images rejected at the threshold that rejects at least 95 % of "
     "the OOD images; OOD positive, as in OpenOOD. Not the same number as FPR95.", "lower"),
    ("aupr_in, aupr_out", "Average precision with in-distribution, or OOD, as the positive class; both depend on how "
     "many images of each there are.", "higher"),
    ("detection_error", "The smallest mean of the two error rates over all thresholds.", "lower"),
    ("tpr_deployed", "Share of in-distribution images accepted at the threshold fixed beforehand: the one that accepts "
     "95 % of the clean in-distribution images.", "higher"),
    ("fpr_deployed", "Share of OOD images accepted at that same threshold.", "lower"),
    ("accuracy", "Share of in-distribution test images classified correctly; attacked, by an attack on the classifier "
     "itself.", "higher"),
    ("attacked", "Inliers are perturbed so that they look OOD, outliers so that they look in-distribution, each image "
     "within the radius and through the detector it is scored on; the worst true score found counts.", ""),
    ("strongest attack", "Of all attacks of the evaluation, at any radius, the one with the lowest mean AUROC for that "
     "network, detector and group.", ""),
    ("near, far", "Groups of OOD sets as the evaluation's config names them: near ones resemble the in-distribution. "
     "Averages weigh each set equally.", ""),
    ("95 % interval", "Bootstrap percentile interval over resampled test images, stratified. It says nothing about "
     "another training run. Averages over several sets have none.", ""),
    ("radius", "Largest size of the perturbation, in fractions of the pixel range [0, 1]: of any pixel (Linf), or the "
     "Euclidean length (L2).", ""),
)  # fmt: skip
