"""What no perturbation in an Linf ball can do to a score, by interval arithmetic.

Bounds are of real arithmetic: a float32 pass is within its rounding error of them. Networks in
float64 make that error negligible.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robust_ood import detectors
from robust_ood.arguments import typed
from robust_ood.bounds.gates import confidence_lower, confidence_upper, gated_of
from robust_ood.bounds.interval import Interval, pixel_interval
from robust_ood.bounds.trace import Bounded, bound, full_precision
from robust_ood.errors import UserError
from robust_ood.inputs import checked, logits_of
from robust_ood.regions import Fraction

Radius = float | Fraction


@typed
def logit_bounds(net: nn.Module, images: Tensor, radius: Radius) -> Interval:
    """Return bounds of every logit over the Linf ball around each image, cut with [0, 1].

    Source: Gowal et al. 2018 (interval bound propagation); GOOD (Bitterwolf et al. 2020), Sec. 3.

    Args:
        net: classifier, in eval mode for the pass whatever its flags are.
        images: `(N, C, H, W)` in [0, 1].
        radius: of the ball, in pixel fractions, >= 0; 0 gives the logits themselves.

    Returns:
        An `Interval` of two tensors `(N, K)`; gradients reach the network's parameters.

    Raises:
        UserError: a layer or function without a rule, by name; pixels outside [0, 1]; a radius
            below 0.
    """
    return _bounded(net, images, radius).outputs


@typed
def logit_differences_upper(net: nn.Module, images: Tensor, radius: Radius) -> Tensor:
    """Return upper bounds of `z_a - z_b`, `(N, K, K)`, for all classes a and b; 0 where a = b.

    The last linear layer is elided: its rows are subtracted before they are bounded, which is
    tighter than subtracting bounds. Arguments and errors as in `logit_bounds`.
    """
    return _differences(_bounded(net, images, radius))


@typed
def logit_gap_upper(net: nn.Module, images: Tensor, radius: Radius) -> Tensor:
    """Return upper bounds of the largest minus the smallest logit, `(N,)` >= 0.

    Source: GOOD (Bitterwolf et al. 2020), the bound that it trains with. Arguments and errors as in
    `logit_bounds`.
    """
    return gap_upper(_bounded(net, images, radius))


def gap_upper(bounded: Bounded) -> Tensor:
    """Return the same, `(N,)`, of bounds that are computed already."""
    return _differences(bounded).amax((1, 2))


@typed
def msp_upper(net: nn.Module, images: Tensor, radius: Radius, temperature: float = 1.0) -> Tensor:
    """Return upper bounds of the maximum softmax probability, `(N,)` in [1/K, 1].

    `max over a of 1 / sum over b of exp(-ub(z_a - z_b))`. Source: GOOD (Bitterwolf et al. 2020),
    Eq. 8. A `models.Gated` network has a bound of its own, by its gate. Arguments and errors as in
    `logit_bounds`.
    """
    gated = gated_of(net)
    if gated is not None:
        return confidence_upper(gated, _valid(net, images, radius), float(radius), temperature)
    differences = logit_differences_upper(net, images, radius) / temperature
    # log p_a <= -log sum over b of exp(-ub(z_a - z_b)); the sum has exp(0) for b = a.
    return (-(-differences).logsumexp(2)).amax(1).exp()


@typed
def msp_lower(net: nn.Module, images: Tensor, radius: Radius, temperature: float = 1.0) -> Tensor:
    """Return lower bounds of the maximum softmax probability, `(N,)` in [1/K, 1].

    `max over a of 1 / sum over b of exp(ub(z_b - z_a))`. Arguments and errors as in
    `logit_bounds`.
    """
    gated = gated_of(net)
    if gated is not None:
        classifier = msp_lower(gated.classifier, images, radius)
        return confidence_lower(gated, _valid(net, images, radius), float(radius), classifier)
    differences = logit_differences_upper(net, images, radius) / temperature
    return (-differences.logsumexp(1)).amax(1).exp()


@typed
def energy_upper(
    net: nn.Module, images: Tensor, radius: Radius, temperature: float = 1.0
) -> Tensor:
    """Return upper bounds of `T logsumexp(z / T)`, `(N,)`. Arguments as in `logit_bounds`."""
    upper = logit_bounds(net, images, radius).upper
    return temperature * (upper / temperature).logsumexp(1)


@typed
def energy_lower(
    net: nn.Module, images: Tensor, radius: Radius, temperature: float = 1.0
) -> Tensor:
    """Return lower bounds of `T logsumexp(z / T)`, `(N,)`. Arguments as in `logit_bounds`."""
    lower = logit_bounds(net, images, radius).lower
    return temperature * (lower / temperature).logsumexp(1)


@typed
def score_bounds(detector: detectors.Detector, images: Tensor, radius: Radius) -> Interval:
    """Return bounds of a detector's score over the Linf ball around each image.

    Args:
        detector: `MSP`, `Energy` or `MaxLogit`, whose scores are simple functions of the logits.
        images, radius: as in `logit_bounds`.

    Returns:
        An `Interval` of two tensors `(N,)`.

    Raises:
        UserError: another detector, and what `logit_bounds` raises.
    """
    # A subclass may have a score of its own.
    if type(detector) not in (detectors.MSP, detectors.Energy, detectors.MaxLogit):
        raise UserError(
            f"detectors: {type(detector).__name__} has no interval bounds; accepted: MSP, Energy, "
            "MaxLogit"
        )
    if isinstance(detector, detectors.MSP):
        return _log_odds_bounds(detector, images, radius)
    if isinstance(detector, detectors.Energy):
        return Interval(
            energy_lower(detector.net, images, radius, detector.temperature),
            energy_upper(detector.net, images, radius, detector.temperature),
        )
    assert isinstance(detector, detectors.MaxLogit)
    logits = logit_bounds(detector.net, images, radius)
    return Interval(logits.lower.amax(1), logits.upper.amax(1))


def _log_odds_bounds(detector: detectors.MSP, images: Tensor, radius: Radius) -> Interval:
    """Return bounds of the tempered log-odds that `MSP` scores, which grow with the probability."""
    temperature = float(detector.learned("temperature"))
    net = detector.net
    if gated_of(net) is not None:
        lower = msp_lower(net, images, radius, temperature).logit()
        upper = msp_upper(net, images, radius, temperature).logit()
        classes = logits_of(net(checked(images[:1]))).shape[1]
    else:
        differences = logit_differences_upper(net, images, radius) / temperature  # (N, K, K)
        classes = differences.shape[1]
        itself = torch.eye(classes, dtype=torch.bool, device=differences.device)
        # Of log p_a / (1 - p_a) = -log of the sum of exp(z_b - z_a) over the other classes b.
        lower = (-differences.masked_fill(itself, -torch.inf).logsumexp(1)).amax(1)
        upper = (-(-differences).masked_fill(itself, -torch.inf).logsumexp(2)).amax(1)
    shift = math.log(classes - 1)
    return Interval(temperature * (lower + shift), temperature * (upper + shift))


@typed
def guaranteed_auroc(inliers: Tensor, outliers: Tensor) -> float:
    """Return the AUROC that no attack within the bounds goes below; ties count as errors.

    Source: GOOD (Bitterwolf et al. 2020), GAUC.

    Args:
        inliers: `(N,)`, clean scores, or lower bounds where inliers are attacked, too.
        outliers: `(M,)`, upper bounds of scores.

    Returns:
        A fraction in [0, 1], higher is better.

    Raises:
        UserError: no scores on a side, or NaN among them; a bound may be infinite.
    """
    for name, scores in (("inliers", inliers), ("outliers", outliers)):
        if scores.dim() != 1 or not len(scores) or bool(scores.isnan().any()):
            raise UserError(f"{name}: expected scores (N,) without NaN, at least one")
    kind = torch.promote_types(inliers.dtype, outliers.dtype)
    ordered = outliers.detach().to(kind).sort().values
    # Outliers whose bound is strictly below each inlier.
    below = torch.searchsorted(ordered, inliers.detach().to(kind).contiguous())  # (N,)
    return float(below.double().mean()) / len(outliers)


def _valid(net: nn.Module, images: Tensor, radius: Radius) -> Tensor:
    if not float(Fraction(radius)) >= 0:
        raise UserError(f"radius: {radius} is not >= 0")
    parameter = next(net.parameters(), images)
    return checked(images).to(parameter.dtype)


def _bounded(net: nn.Module, images: Tensor, radius: Radius) -> Bounded:
    valid = _valid(net, images, radius)
    return bound(net, pixel_interval(valid, Fraction(radius)))


def _differences(bounded: Bounded) -> Tensor:
    """Return upper bounds of `z_a - z_b`, `(N, K, K)`."""
    with full_precision(bounded.outputs.lower):
        return _elided(bounded)


def _elided(bounded: Bounded) -> Tensor:
    if bounded.features is None or bounded.head is None:
        outputs = bounded.outputs
        raw = outputs.upper[:, :, None] - outputs.lower[:, None, :]  # (N, K, K)
        equal = torch.eye(raw.shape[1], dtype=torch.bool, device=raw.device)
        return raw.masked_fill(equal, 0.0)
    weight = bounded.head.weight  # (K, D)
    logits: Tensor = bounded.head(bounded.features.centre)  # (N, K)
    half_width = bounded.features.half_width  # (N, D)
    rows = []
    for row in weight:
        # One class at a time: the differences of all pairs of rows would not fit in memory.
        rows.append(half_width @ (row - weight).abs().T)  # (N, K)
    return logits[:, :, None] - logits[:, None, :] + torch.stack(rows, 1)
