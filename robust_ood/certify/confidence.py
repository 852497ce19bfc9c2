"""Exact binomial confidence: which sorted score bounds a quantile, and how likely a class is."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, ndtri

from robust_ood.arguments import typed
from robust_ood.detectors.smoothing import check_draws, check_share
from robust_ood.errors import UserError


class Ranks(NamedTuple):
    """Which of the sorted scores, from 1, bound a quantile; None where not even the last does."""

    lower: int | None
    upper: int | None


def bounding_ranks(radius: float, sigma: float, draws: int, alpha: float, quantile: float) -> Ranks:
    """Return the ranks of the scores that bound the smoothed score anywhere in an L2 ball.

    Source: Chiang et al. 2020, Lemma 1 and Sec. 4: with `p -/+ = Phi(Phi^-1(p) -/+ radius / sigma)`
    the quantile p at any image of the ball is between the quantiles p- and p+ at its centre. Those
    are bounded by order statistics: of n scores, the k-th is at most the quantile p- but with the
    probability that fewer than k of them do not exceed it, P(Bin(n, p-) < k), and at least the
    quantile p+ but with the probability P(Bin(n, p+) >= k). Each of the two is at most `alpha`.
    """
    center = float(ndtri(quantile))
    shift = radius / sigma
    upper = _surely_above(draws, float(ndtr(center + shift)), alpha)
    # Mirrored, because 1 - (1 - p) would round a small p away.
    mirrored = _surely_above(draws, float(ndtr(shift - center)), alpha)
    lower = None if mirrored is None else draws + 1 - mirrored
    return Ranks(lower, upper)


def _surely_above(draws: int, share: float, alpha: float) -> int | None:
    """Return the smallest k of 1..draws with P(Bin(draws, share) >= k) <= alpha."""
    ranks = np.arange(1, draws + 1, dtype=np.float64)
    tails = betainc(ranks, draws - ranks + 1, share)  # falls with the rank
    sure = np.flatnonzero(tails <= alpha)
    if not len(sure):
        return None
    return int(ranks[sure[0]])


@typed
def draws_needed(radius: float, sigma: float, alpha: float, quantile: float = 0.5) -> float:
    """Return from how many draws on a score is bounded on both sides; infinity where none suffice.

    Args:
        radius: of the L2 ball, >= 0.
        sigma: of the noise, > 0.
        alpha: the probability with which a bound may fail, in (0, 1).
        quantile: which one the smoothed score is, in (0, 1).
    """
    if not radius >= 0:
        raise UserError(f"radius: {radius} is not >= 0")
    if not 0 < sigma < math.inf:
        raise UserError(f"sigma: {sigma} is not a positive number")
    check_share("alpha", alpha)
    check_share("quantile", quantile)
    lower, upper = _sided_draws(radius, sigma, alpha, quantile)
    return max(lower, upper)


def least_draws(radius: float, sigma: float, alpha: float, quantile: float) -> float:
    """Return from how many draws on a score is bounded on one side at least."""
    return min(_sided_draws(radius, sigma, alpha, quantile))


def _sided_draws(radius: float, sigma: float, alpha: float, quantile: float) -> tuple[float, float]:
    """Return the fewest draws for a lower and for an upper bound.

    The extreme of n scores is beyond a quantile p but with the probability p^n.
    """
    center = float(ndtri(quantile))
    needed = []
    for side in (-center, center):
        beyond = float(ndtr(-(side + radius / sigma)))  # 1 - p
        if beyond == 0:
            needed.append(math.inf)
        else:
            needed.append(float(max(1, math.ceil(math.log(alpha) / math.log1p(-beyond)))))
    return needed[0], needed[1]


@typed
def clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """Return a lower bound of a probability that fails with a probability of `alpha` at most.

    Source: Clopper and Pearson 1934, one-sided: the probability with which so many successes or
    more have the probability `alpha`.

    Args:
        successes: how often it happened, in 0..trials.
        trials: how often it could, >= 1.
        alpha: in (0, 1).
    """
    check_draws("trials", trials)
    check_share("alpha", alpha)
    if successes == 0:
        # The beta distribution has no such parameter.
        return 0.0
    return float(betaincinv(successes, trials - successes + 1, alpha))


def fair_coin_p_value(heads: int, tosses: int) -> float:
    """Return the two-sided p-value of so many heads, or so few, of a fair coin."""
    more = max(heads, tosses - heads)
    if more == tosses - more:
        return 1.0
    return min(1.0, 2 * float(betainc(more, tosses - more + 1, 0.5)))


@typed
def bonferroni(alpha: float, bounds: int) -> float:
    """Return the `alpha` of each bound with which all of them hold together at the given one.

    Args:
        alpha: the probability with which any of the bounds may fail, in (0, 1).
        bounds: how many there are: one for each image whose lower or upper bound is used.

    `score_bounds(..., alpha=bonferroni(0.001, inliers + outliers))` makes a certified AUROC that
    holds with probability 0.999.
    """
    check_share("alpha", alpha)
    check_draws("bounds", bounds)
    return alpha / bounds
