"""OpenMax: the odds of the known classes, after logits far from their class have been lowered."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import LargestOfClasses, RightMeans, double
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network

_SHIFT = 10_000.0  # of distances before the fit, as in libMR
_STEEPEST = 1e8  # the largest exponent: a tail without spread is a step
_HALVINGS = 80  # of the interval that holds the exponent's logarithm
_CERTAIN = 5.0  # beyond it `exp(-exp(a))` is 0 in float32, and its gradient would be NaN


class OpenMax(OutputsDetector):
    """The log-odds of the known classes against the unknown one, unbounded.

    Source: Bendale and Boult 2016, Alg. 1-2. A class's centre is the mean of the logits of its
    rightly predicted training images, and a Weibull distribution is fitted to the `tail` largest of
    their Euclidean distances to it. Each of the `top` largest logits, at rank i = 1, 2, ..., gives
    the share `w_i (top + 1 - i) / top` of itself to the class "unknown", where w_i is the
    distribution's value at the image's distance to that class's centre. `published` is minus
    the softmax probability of "unknown", in (-1, 0); the log-odds order images likewise, and do not
    tie.

    The distribution is libMR's: distances are moved to `10000 + distance - smallest of the tail`,
    and both parameters have the greatest likelihood, here by bisection in float64. pytorch-ood's
    search stops earlier, takes 25 and 10 for `tail` and `top`, and all labelled images; OpenOOD
    takes 20 and 3, and returns all probabilities instead of a score. A class of which no image is
    rightly predicted has the statistics of all its images.

    Args:
        net: classifier, images to logits.
        tail: how many of the largest distances of each class are fitted, >= 2.
        top: how many of the largest logits are lowered, >= 1; all of them where the classes are
            fewer.
    """

    @typed
    def __init__(self, net: Network, tail: int = 20, top: int = 10) -> None:
        super().__init__(net)
        if tail < 2:
            raise UserError(f"tail: expected a number of distances >= 2, got {tail}")
        if top < 1:
            raise UserError(f"top: expected a number of classes >= 1, got {top}")
        self.tail = tail
        self.top = top
        self.declare("centres", "smallest", "exponents", "log_scales")

    def learn(self) -> Rounds:
        """Find the centres by one pass, and the tails of the distances by a second one."""
        classes = self.num_classes
        means = RightMeans(classes)

        def read_logits(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return seen.out.logits, means.rows(seen.out.logits, seen.classes(classes))

        yield [self.reading(means, read_logits)]
        centres = means.means  # (K, K)
        has_right = means.has_right
        tails = LargestOfClasses(classes, self.tail)

        def read_distances(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            logits = seen.out.logits
            labels = seen.classes(classes)
            right = logits.argmax(1) == labels
            of_centre = right | ~has_right.to(logits.device)[labels]
            offsets = double(logits) - centres.to(logits.device)[labels]
            distances = torch.linalg.vector_norm(offsets, dim=1)
            return distances.masked_fill(~of_centre, -torch.inf), labels

        yield [self.reading(tails, read_distances)]
        smallest, exponents, log_scales = fit_weibull(tails.largest)
        self.keep(centres=centres, smallest=smallest, exponents=exponents, log_scales=log_scales)

    def score(self, out: Outputs) -> Tensor:
        """Return the log-odds of the known classes, of each row of logits."""
        logits = losses.wide(out.logits)
        known, unknown = self.revised(logits)
        return known.logsumexp(1) - unknown

    def published_score(self, out: Outputs) -> Tensor:
        """Return minus the probability of the unknown class, of each row of logits, in (-1, 0)."""
        return -torch.sigmoid(-self.score(out))

    def revised(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lowered logits `(N, K)` and that of the unknown class `(N,)`."""
        largest, classes = logits.topk(min(self.top, logits.shape[1]), dim=1)  # (N, top)
        centres = self.learned("centres").to(logits)[classes]  # (N, top, K)
        distances = torch.linalg.vector_norm(logits[:, None] - centres, dim=2)  # (N, top)
        count = classes.shape[1]
        ranks = torch.arange(count, 0, -1, device=logits.device) / count  # 1, ..., 1 / top
        given = largest * self._tail_value(distances, classes) * ranks
        return logits.scatter_add(1, classes, -given), given.sum(1)

    def _tail_value(self, distances: Tensor, classes: Tensor) -> Tensor:
        """Return the Weibull distribution's values `(N, top)` at distances to classes."""
        smallest = self.learned("smallest").to(distances)[classes]
        exponents = self.learned("exponents").to(distances)[classes]
        log_scales = self.learned("log_scales").to(distances)[classes]
        # Logarithms of shifted distances by the shift, which float32 tells apart.
        moved = ((distances - smallest) / _SHIFT).clamp_min(-0.999).log1p()
        power = (exponents * (moved - log_scales)).clamp_max(_CERTAIN)
        return -torch.expm1(-power.exp())

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class.

        The former jumps where two logits swap ranks.
        """
        return AttackSurface((self.surrogate, self.confidence), exact=True)


def fit_weibull(tails: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what describes the Weibull distribution of each row, `(K,)` each, float64.

    The smallest value, the exponent k, and the logarithm of the scale by the shift, of `1 + (x -
    smallest) / shift`. The likelihood is greatest where `mean of u, weighed by exp(k u)` equals
    `mean of u + 1 / k`, with u the logarithm; the difference grows with k.

    Args:
        tails: `(K, M)`; -inf where a row has fewer values.
    """
    there = tails > -torch.inf
    smallest = tails.masked_fill(~there, torch.inf).amin(1)  # (K,)
    logs = ((tails - smallest[:, None]) / _SHIFT).masked_fill(~there, 0).log1p()
    counts = there.sum(1)
    means = logs.sum(1) / counts
    low = torch.zeros_like(means)
    high = torch.full_like(means, _STEEPEST).log()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        exponents = middle.exp()
        weights = (exponents[:, None] * logs).masked_fill(~there, -torch.inf).softmax(1)
        too_large = (weights * logs).sum(1) - means > 1 / exponents
        high = torch.where(too_large, middle, high)
        low = torch.where(too_large, low, middle)
    exponents = ((low + high) / 2).exp()
    powers = (exponents[:, None] * logs).masked_fill(~there, -torch.inf)
    log_scales = (powers.logsumexp(1) - counts.log()) / exponents
    return smallest, exponents, log_scales
