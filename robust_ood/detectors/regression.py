"""The logistic regression that weighs the layers of a Mahalanobis detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robust_ood.detectors.fitting import as_floats, device_of, require_images, unpack
from robust_ood.detectors.processes import gathered
from robust_ood.modes import differentiating, evaluating

if TYPE_CHECKING:
    from robust_ood.detectors.mahalanobis import Mahalanobis


def fit_layer_weights(
    detector: Mahalanobis,
    columns: Callable[[Tensor], Sequence[Tensor]],
    inliers: Iterable[Any],
    outliers: Iterable[Any],
) -> None:
    """Regress "in-distribution or not" on the layers' scores, and store weights and bias in the detector.

    Source: ALOE Eq. 9 (Lee et al. 2018). Their codes cross-validate the strength of the penalty on raw scores. The
    scales of those differ by orders of magnitude between layers, so here scores are standardised and the penalty is
    scikit-learn's default; the weights that are stored are those of the raw scores.

    Args:
        detector: whose weights are learned.
        columns: images to one score `(N,)` a layer.
        inliers, outliers: batches of images, as in `fit`; labels are not read.

    Raises:
        UserError: no images in one of them.
    """
    from sklearn.linear_model import LogisticRegression  # a second of start-up that few need

    with differentiating(), torch.no_grad(), evaluating(detector):
        known = _scores(detector, columns, inliers, "inliers")
        unknown = _scores(detector, columns, outliers, "outliers")
    scores = torch.cat([known, unknown])  # (N, L)
    mean, std = scores.mean(0), scores.std(0).clamp_min(1e-12)
    target = torch.cat([torch.ones(len(known)), torch.zeros(len(unknown))])
    # The default tolerance stops a thousandth away from the weights.
    model = LogisticRegression(tol=1e-10, max_iter=10_000).fit(((scores - mean) / std).numpy(), target.numpy())
    weights = torch.from_numpy(model.coef_[0].copy()) / std
    detector.keep(weights=weights, bias=torch.tensor(float(model.intercept_[0])) - weights @ mean)


def _scores(
    detector: Mahalanobis, columns: Callable[[Tensor], Sequence[Tensor]], loader: Iterable[Any], name: str
) -> Tensor:
    parts = []
    for batch in loader:
        images = as_floats(unpack(batch)[0].to(device_of(detector.net)))
        parts.append(torch.stack(list(columns(images)), dim=1).cpu().double())
    require_images(len(parts), name, "gives no images to weigh the layers with")
    return gathered(torch.cat(parts))
