"""Scores of the softmax: MSP, entropy, generalised entropy, divergence from typical ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.attack_surface import AttackSurface
from robust_ood.detectors.contract import OutputsDetector
from robust_ood.detectors.fitting.calibration import CalibrationSlopes, best_temperature
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch, Split
from robust_ood.detectors.fitting.statistics import ClassMeans, double
from robust_ood.detectors.logarithms import (
    minus_log_entropy,
    minus_log_generalised_entropy,
    tempered_log_odds,
)
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network


class MSP(OutputsDetector):
    """The maximum softmax probability p as log-odds, `T (log p / (1 - p) + log(K - 1))`, >= 0.

    Source: Hendrycks and Gimpel 2017; ALOE Eq. 5, PRO Eq. 1 with its temperature. The published
    value is p itself, in (1/K, 1], which `published` gives. The log-odds order images as p does,
    but p in float32 is exactly 1 beyond a margin of about 17, where images tie.

    Args:
        net: classifier, images to logits.
        temperature: what the logits are divided by, > 0; or "fit": `fit` then finds the minimum of
            the negative log-likelihood on the labelled images that it gets as `validation`, which
            the network should not have been trained on (Guo et al. 2017; TempScale in OpenOOD).
    """

    @typed
    def __init__(self, net: Network, temperature: float | Literal["fit"] = 1.0) -> None:
        super().__init__(net)
        self.fits_temperature = temperature == "fit"
        if temperature == "fit":
            self.declare("temperature")
        elif isinstance(temperature, str) or not temperature > 0:
            raise UserError(f"temperature: expected a number > 0 or 'fit', got {temperature!r}")
        else:
            # A buffer, too, so that a state holds the temperature in both cases.
            self.register_buffer("temperature", torch.tensor(float(temperature)))

    @property
    def learns_from(self) -> Mapping[Split, str]:
        """Labelled images that the network was not trained on, for the temperature."""
        if self.fits_temperature:
            return {"validation": "its temperature is fitted on training images"}
        return {}

    def learn(self) -> Rounds:
        """Find the temperature by two passes over labelled images, where it is to be fitted."""
        if not self.fits_temperature:
            return

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            return seen.out.logits, seen.classes(self.num_classes)

        # The first pass brackets the temperature between points of a coarse grid.
        coarse = CalibrationSlopes.coarse()
        yield [self.reading(coarse, read, "validation")]
        fine = coarse.refined()
        yield [self.reading(fine, read, "validation")]
        self.keep(temperature=torch.tensor(best_temperature(fine)))

    def score(self, out: Outputs) -> Tensor:
        """Return the log-odds of the largest probability of each row of logits."""
        return tempered_log_odds(out.logits, self.learned("temperature"))

    def published_score(self, out: Outputs) -> Tensor:
        """Return the largest probability of each row of logits, in (1/K, 1]."""
        return F.softmax(self._scaled(out), dim=1).amax(1)

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the log-odds of the most probable class, unbounded."""
        return losses.log_odds(self._scaled(out))

    def attack_surface(self) -> AttackSurface:
        """Return the log-odds at the detector's temperature, then those at temperature 1.

        The latter can lead to other classes.
        """
        # At temperature 1, both surrogates would be the same.
        if float(self.learned("temperature")) == 1:
            return AttackSurface((self.surrogate,), exact=True)
        return AttackSurface((self.surrogate, self.confidence), exact=True)

    def _scaled(self, out: Outputs) -> Tensor:
        return losses.wide(out.logits) / self.learned("temperature")


class Entropy(OutputsDetector):
    """Minus the logarithm of the softmax's Shannon entropy in nats, >= -log log K, unbounded.

    Source: PRO Sec. 5.1 (PRO-ENT's base score). The published value is minus the entropy, in [-log
    K, 0], which `published` gives, through `log_softmax` instead of the reference's `log(p +
    1e-10)`. The logarithm orders images likewise, and distinguishes those whose entropy is 0 in
    float32.
    """

    def score(self, out: Outputs) -> Tensor:
        """Return minus the logarithm of the entropy of each row of logits."""
        return minus_log_entropy(out.logits)

    def published_score(self, out: Outputs) -> Tensor:
        """Return the negative entropy of each row of logits, in [-log K, 0]."""
        return -losses.entropy(out.logits)

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class.

        The entropy's gradient turns between classes.
        """
        return AttackSurface((self.surrogate, self.confidence), exact=True)


class GEN(OutputsDetector):
    """Minus the logarithm of the generalised entropy, `sum of p^gamma (1 - p)^gamma`, unbounded.

    The sum is over the `top` largest probabilities. Source: Liu et al. 2023; PRO Sec. 5.1, whose
    formula lacks the minus sign that its code has. The published value is minus the sum, <= 0,
    which `published` gives. Its logarithm orders images likewise, and distinguishes those whose sum
    is 0 in float32. `log(1 - p)` of the largest probability is the log-sum of the others: computed
    directly, the gradient is NaN as soon as the softmax saturates.

    Args:
        net: classifier, images to logits.
        gamma: exponent, > 0; smaller is more sensitive to small probabilities.
        top: number of largest probabilities summed (M in the paper); all of them where the classes
            are fewer.
    """

    @typed
    def __init__(self, net: Network, gamma: float = 0.1, top: int = 100) -> None:
        super().__init__(net)
        if not gamma > 0:
            raise UserError(f"gamma: expected a number > 0, got {gamma}")
        if isinstance(top, bool) or not isinstance(top, int) or top < 1:
            raise UserError(f"top: expected a number of classes >= 1, got {top}")
        self.gamma = gamma
        self.top = top

    def score(self, out: Outputs) -> Tensor:
        """Return minus the logarithm of the generalised entropy of each row of logits."""
        return minus_log_generalised_entropy(out.logits, self.gamma, self.top)

    def published_score(self, out: Outputs) -> Tensor:
        """Return the negative generalised entropy of each row of logits, <= 0."""
        return -(-self.score(out)).exp()

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class.

        The former's gradient turns between classes.
        """
        return AttackSurface((self.surrogate, self.confidence), exact=True)


class KLMatching(OutputsDetector):
    """Minus the divergence from the nearest typical softmax, `-min over k of KL(p || d_k)`, <= 0.

    Source: Hendrycks et al. 2022, Sec. 4: d_k is the mean softmax of the images that the network
    *predicts* as class k, so no labels are read. Classes that it never predicts have no d_k and are
    left out, as in pytorch-ood.

    Far from decision boundaries the divergence tends to a constant of each class, `-log d_k[k]`.
    Images whose softmax is the same in float32 tie there: no form of the score that orders the
    classes as published tells them apart.

    Args:
        net: classifier, images to logits.
    """

    @typed
    def __init__(self, net: Network) -> None:
        super().__init__(net)
        self.declare("typical")

    def learn(self) -> Rounds:
        """Average the softmax of each predicted class, by one pass."""
        means = ClassMeans(self.num_classes)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            logits = seen.out.logits
            return F.softmax(double(logits), dim=1), logits.argmax(1)

        yield [self.reading(means, read)]
        predicted = means.counts > 0  # (K,)
        self.keep(typical=means.sums[predicted] / means.counts[predicted, None])

    def score(self, out: Outputs) -> Tensor:
        """Return minus the divergence from the nearest typical softmax."""
        log_p = losses.finite_logs(F.log_softmax(losses.wide(out.logits), dim=1))  # (N, K)
        p = log_p.exp()
        typical = self.learned("typical").to(log_p)  # (predicted classes, K)
        log_typical = typical.clamp_min(torch.finfo(log_p.dtype).tiny).log()
        # (N, predicted classes)
        divergences = (p * log_p).sum(1, keepdim=True) - p @ log_typical.T
        return -divergences.amin(1)

    def attack_surface(self) -> AttackSurface:
        """Return the score, then the log-odds of the predicted class.

        The nearest typical softmax can change at each step.
        """
        return AttackSurface((self.surrogate, self.confidence), exact=True)
