"""How well scores separate in-distribution (ID) from out-of-distribution (OOD) images.

All metrics are exact over all thresholds. Scores are one-dimensional float tensors of any range,
**higher = more in-distribution**; they are only ever compared. An image is *accepted* as
in-distribution when its score is at least the threshold. Every value is a fraction in [0, 1]
computed from integer counts on the CPU, so it depends neither on the device, nor on the order of
the scores, nor on a strictly increasing transformation of them.

Published tables differ in which class they call positive. Here each name fixes it:

- `auroc`: the probability that an ID score exceeds an OOD score, ties counted half; the same
  whichever class is positive.
- `aupr_in`: average precision, **ID positive**, ranked by the score.
- `aupr_out`: average precision, **OOD positive**, ranked by the negated score.
- `fpr95`: share of OOD accepted when at least 95 % of ID is accepted; **ID positive** (ODIN, ALOE).
- `fpr95_ood_positive`: share of ID rejected when at least 95 % of OOD is rejected; **OOD positive**
  (OpenOOD).
- `detection_error`: the smallest mean of the two error rates over all thresholds; the same for both
  (ODIN, ALOE).
- `tpr_deployed`, `fpr_deployed`: share of ID and of OOD accepted at the threshold that accepts 95 %
  of *clean* ID.

The higher `auroc`, `aupr_in`, `aupr_out` and `tpr_deployed`, the better; the lower the others.
"""

from robust_ood.metrics.confidence import (
    auroc_interval,
    fpr_interval,
    mean_rate_interval,
    rate_interval,
)
from robust_ood.metrics.intervals import bootstrap_intervals
from robust_ood.metrics.paired import Difference, delong_test, holm
from robust_ood.metrics.pooled import AUROC, FPR95, OODMetrics
from robust_ood.metrics.rates import (
    aupr_in,
    aupr_out,
    auroc,
    deployed_rates,
    deployed_threshold,
    detection_error,
    fpr95,
    fpr95_ood_positive,
    fpr_at_tpr,
    ood_metrics,
)
from robust_ood.metrics.resampled import paired_bootstrap

__all__ = [
    "AUROC",
    "FPR95",
    "Difference",
    "OODMetrics",
    "aupr_in",
    "aupr_out",
    "auroc",
    "auroc_interval",
    "bootstrap_intervals",
    "delong_test",
    "deployed_rates",
    "deployed_threshold",
    "detection_error",
    "fpr95",
    "fpr95_ood_positive",
    "fpr_at_tpr",
    "fpr_interval",
    "holm",
    "mean_rate_interval",
    "ood_metrics",
    "paired_bootstrap",
    "rate_interval",
]
