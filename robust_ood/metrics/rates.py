"""The metrics as pure functions of ID scores `(N,)` and OOD scores `(M,)`."""

from __future__ import annotations

import math

from torch import Tensor

from robust_ood.arguments import typed
from robust_ood.errors import UserError
from robust_ood.metrics.counts import checked, count, least_count


@typed
def auroc(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the probability that a random ID score exceeds a random OOD score.

    Ties are counted half (Mann-Whitney).

    Args:
        id_scores: (N,) finite floats, higher = more in-distribution.
        ood_scores: (M,) likewise.

    Returns:
        A fraction in [0, 1], higher is better.

    Raises:
        UserError: scores that are not floats, not one-dimensional, empty or not finite (so for all
            functions here).
    """
    return float(count(id_scores, ood_scores).auroc())


@typed
def aupr_in(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the average precision with ID positive, ranked by the score; higher is better.

    This is the sum over thresholds of precision times gained recall, as
    `sklearn.metrics.average_precision_score`, and not the trapezoidal area, which is too
    optimistic. Unlike `auroc` it depends on the ratio of N to M.
    """
    return float(count(id_scores, ood_scores).average_precision())


@typed
def aupr_out(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the average precision with OOD positive, by the negated score; else as `aupr_in`."""
    return float(count(id_scores, ood_scores).exchanged().average_precision())


@typed
def fpr_at_tpr(id_scores: Tensor, ood_scores: Tensor, tpr: float = 0.95) -> float:
    """Return the share of OOD accepted at the threshold that accepts a share `tpr` of ID.

    It is the strictest threshold that accepts at least that share.

    Source: ODIN and ALOE (ID positive). Where no threshold accepts exactly that share, references
    differ: the ALOE code takes the TPR *nearest* to 0.95, on either side of it. Here it is the
    *first* TPR >= `tpr`, so that the share promised is always reached; scikit-learn's
    `roc_curve(..., drop_intermediate=False)` gives the same.

    Args:
        id_scores: (N,) finite floats, higher = more in-distribution.
        ood_scores: (M,) likewise.
        tpr: the share of ID to accept, in (0, 1].

    Returns:
        A fraction in [0, 1], lower is better.

    Raises:
        UserError: scores as in `auroc`; `tpr` outside (0, 1].
    """
    return float(count(id_scores, ood_scores).fpr_at_tpr(tpr))


@typed
def fpr95(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return `fpr_at_tpr` at 0.95 (ID positive): the share of OOD accepted."""
    return fpr_at_tpr(id_scores, ood_scores, 0.95)


@typed
def fpr95_ood_positive(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the share of ID rejected where at least 95 % of OOD is rejected (OOD positive).

    The threshold is the lowest that rejects so many.

    Source: OpenOOD's FPR@95, where OOD is positive and the score is negated; again the first TPR >=
    0.95. It equals `fpr95(-ood_scores, -id_scores)` and in general differs from `fpr95`. Lower is
    better.
    """
    return float(count(id_scores, ood_scores).exchanged().fpr_at_tpr(0.95))


@typed
def detection_error(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Return the minimum over thresholds of (FNR + FPR) / 2, the mean of the two error rates.

    Source: ODIN and ALOE, with ID and OOD equally likely. At most 0.5, which accepting everything
    attains; lower is better. The threshold is chosen on these very scores, so it is a bound and not
    a rate that a deployed detector reaches.
    """
    return float(count(id_scores, ood_scores).detection_error())


@typed
def deployed_threshold(clean_id_scores: Tensor, tpr: float = 0.95) -> float:
    """Return the highest threshold that accepts at least a share `tpr` of the clean ID scores.

    It is what can be set before deployment, knowing neither the OOD images nor the attack. Raises
    as `fpr_at_tpr`.
    """
    scores = checked("clean_id_scores", clean_id_scores)
    rejected = scores.numel() - least_count(tpr, scores.numel())
    return float(scores.kthvalue(rejected + 1).values)


@typed
def deployed_rates(threshold: float, id_scores: Tensor, ood_scores: Tensor) -> dict[str, float]:
    """Return the shares of ID and OOD accepted at a threshold that was fixed before.

    They are called `tpr_deployed` and `fpr_deployed`.

    Args:
        threshold: a finite number, as from `deployed_threshold`.
        id_scores: (N,) finite floats, clean or attacked.
        ood_scores: (M,) likewise.

    Raises:
        UserError: scores as in `auroc`; a threshold that is not finite.
    """
    if not math.isfinite(threshold):
        raise UserError(f"threshold: {threshold}; accepted: a finite number")
    return {
        "tpr_deployed": _accepted(checked("id_scores", id_scores), threshold),
        "fpr_deployed": _accepted(checked("ood_scores", ood_scores), threshold),
    }


def _accepted(scores: Tensor, threshold: float) -> float:
    # float64: a comparison in the scores' own type would round the threshold
    return int((scores.double() >= threshold).sum()) / scores.numel()


@typed
def ood_metrics(
    id_scores: Tensor, ood_scores: Tensor, clean_id_scores: Tensor | None = None
) -> dict[str, float]:
    """Return all metrics, from one sort of the scores.

    Args:
        id_scores: (N,) finite floats, higher = more in-distribution; clean or attacked.
        ood_scores: (M,) likewise.
        clean_id_scores: (L,) scores of the unattacked ID images, which set the threshold of the
            deployed rates.

    Returns:
        `auroc, aupr_in, aupr_out, fpr95, fpr95_ood_positive, detection_error`, each the value of
        the function of that name, and with clean scores `tpr_deployed, fpr_deployed`.

    Raises:
        UserError: scores as in `auroc`.

    Of four pairs, three are won and one is tied:

    >>> import torch
    >>> ood_metrics(torch.tensor([3.0, 2.0]), torch.tensor([2.0, 1.0]))["auroc"]
    0.875
    """
    id_positive = count(id_scores, ood_scores)
    ood_positive = id_positive.exchanged()
    values = {
        "auroc": id_positive.auroc(),
        "aupr_in": id_positive.average_precision(),
        "aupr_out": ood_positive.average_precision(),
        "fpr95": id_positive.fpr_at_tpr(0.95),
        "fpr95_ood_positive": ood_positive.fpr_at_tpr(0.95),
        "detection_error": id_positive.detection_error(),
    }
    rates = {name: float(value) for name, value in values.items()}
    if clean_id_scores is not None:
        rates |= deployed_rates(deployed_threshold(clean_id_scores), id_scores, ood_scores)
    return rates
