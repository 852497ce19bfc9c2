"""Extremes of feature maps, and the nearest training features: CombOOD."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_ood import losses
from robust_ood.arguments import typed
from robust_ood.detectors.fitting.gaussians import squared_lengths
from robust_ood.detectors.fitting.image_keys import image_keys
from robust_ood.detectors.fitting.passes import Rounds, SeenBatch
from robust_ood.detectors.fitting.statistics import Sample, double
from robust_ood.detectors.layers import PENULTIMATE, Layers, named
from robust_ood.detectors.neighbour_index import IndexKind
from robust_ood.detectors.neighbours import KNN
from robust_ood.errors import UserError
from robust_ood.models import Outputs
from robust_ood.models.wrap import Network

# The squared distance of two features that float32 cannot tell apart; its logarithm is finite.
_SMALLEST = 1e-12
# Beyond it, powers of outliers' extremes would leave float32's range once they are squared.
_LARGEST_LOGARITHM = 30.0
# Extremes that vary less than this, relative to their size, are constant up to float32's rounding.
_CONSTANT = 1e-6


class CombOOD(KNN):
    """Minus logarithms of two distances, to features and of extremes of feature maps, unbounded.

    The score is `- sqrt(D) log d^2 - m^2`. d is the distance to the k-th nearest of the training
    images' penultimate features, which have D dimensions and unit length, as in `KNN`. m is the
    Mahalanobis distance of the extremes: the largest value, and minus the smallest, of each layer's
    map and of the logits. Extremes are standardised, made normal by a Yeo-Johnson power of each
    column (that of the largest likelihood) and standardised again; `regularisation` times the
    identity is added to their covariance, which is one for all classes.

    Source: Rajasekaran et al. 2024 (COMBOOD), as its authors' code computes it: of several
    combinations the one that its main script runs. m alone is XOOD-M (Berglind et al. 2022). The
    code takes the extremes of what goes *into* each ReLU, GELU and leaky ReLU module; here they are
    of what the named layers give. Both are the same where the layers are those before the
    activations; after a ReLU the smallest value is always 0, which adds nothing. Where d is 0 the
    code is undefined; here `d^2` is at least 1e-12.

    Args:
        net: classifier.
        layers: names of submodules with maps `(N, C, ...)`; "all" means the layers that the network
            itself names.
        neighbours: k, >= 1.
        bank_size: of how many training images features and extremes are kept while fitting, and
            the features afterwards; a uniform sample where there are more.
        regularisation: > 0.
        index: how neighbours are searched, as in `KNN`.
        probes: how many lists "faiss-ivf" looks into, >= 1.
    """

    @typed
    def __init__(
        self,
        net: Network,
        layers: Layers = "all",
        neighbours: int = 50,
        bank_size: int = 50_000,
        *,
        regularisation: float = 1.0,
        index: IndexKind = "exact",
        probes: int = 32,
    ) -> None:
        super().__init__(net, neighbours, bank_size, index=index, probes=probes)
        if not regularisation > 0:
            raise UserError(f"regularisation: expected a number > 0, got {regularisation}")
        self.layers = named(net, layers)
        self.regularisation = regularisation
        self.declare("means", "scales", "exponents", "centers", "whitening")

    def learn(self) -> Rounds:
        """Keep features, and find the distribution of extremes, by one pass."""
        sample = Sample(self.bank_size)

        def read(seen: SeenBatch) -> tuple[Tensor, Tensor]:
            rows = torch.cat([self._prepared(seen.out), self._extremes(seen.out)], dim=1)
            return rows, image_keys(seen.images)

        yield [self.reading(sample, read)]
        self.require_enough(len(sample.rows))
        columns = 2 * (len(self.layers) + 1)  # of the layers and the logits
        self.keep(bank=sample.rows[:, :-columns])
        self._learn_extremes(double(sample.rows[:, -columns:]))

    def _learn_extremes(self, extremes: Tensor) -> None:
        """Keep what makes extremes `(N, F)` of training images normal, and white."""
        means = extremes.mean(0)
        scales = extremes.std(0, correction=0)
        varying = scales > _CONSTANT * extremes.abs().amax(0)  # (F,)
        scales = torch.where(varying, scales, 1.0)
        standard = (extremes - means) / scales
        exponents = torch.ones_like(means)
        exponents[varying] = normal_exponents(standard[:, varying])
        powers = yeo_johnson(standard, exponents)
        centers = powers.mean(0)
        spreads = torch.where(varying, powers.std(0, correction=0), 1.0)
        normal = (powers - centers) / spreads
        covariance = normal.T @ normal / max(len(normal) - 1, 1)  # (F, F)
        values, vectors = torch.linalg.eigh(covariance)
        whitening = vectors / (values + self.regularisation).sqrt() / spreads[:, None]
        self.keep(
            means=means, scales=scales, exponents=exponents, centers=centers, whitening=whitening
        )

    def score(self, out: Outputs) -> Tensor:
        """Return minus the logarithm of one distance, and minus the square of the other."""
        features = self._prepared(out)
        squared = squared_lengths(features - self._kth_nearest(features))  # (N,)
        nearness: Tensor = -(features.shape[1] ** 0.5) * squared.clamp_min(_SMALLEST).log()
        return nearness - self._squared_distance(out)

    def surrogate_score(self, out: Outputs) -> Tensor:
        """Return the score `(N,)`, whose gradient is finite."""
        return self.score(out)

    def _squared_distance(self, out: Outputs) -> Tensor:
        """Return the squared Mahalanobis distance `(N,)` of the extremes."""
        extremes = self._extremes(out)
        standard = (extremes - self.learned("means").to(extremes)) / self.learned("scales")
        powers = yeo_johnson(standard, self.learned("exponents").to(extremes))
        shifted = powers - self.learned("centers").to(extremes)
        return squared_lengths(shifted @ self.learned("whitening").to(extremes))

    def _extremes(self, out: Outputs) -> Tensor:
        """Return the largest value, and minus the smallest, of maps and logits `(N, F)`."""
        columns: list[Tensor] = []
        for layer in self.layers:
            values = out.features if layer == PENULTIMATE else out.maps[layer]
            columns.extend(_both_ends(values))
        columns.extend(_both_ends(out.logits))
        return torch.stack(columns, dim=1)


def yeo_johnson(values: Tensor, exponents: Tensor) -> Tensor:
    """Return the Yeo-Johnson powers of values `(N, F)`, of the same shape.

    Source: Yeo and Johnson 2000: `((1 + x)^e - 1) / e` where x >= 0, and `-((1 - x)^(2 - e) - 1) /
    (2 - e)` elsewhere; logarithms where the exponent is 0.

    Args:
        values: `(N, F)`.
        exponents: e of each column, `(F,)`.
    """
    return _power(values.clamp_min(0), exponents) - _power((-values).clamp_min(0), 2 - exponents)


def normal_exponents(values: Tensor) -> Tensor:
    """Return the exponents `(F,)` that make the columns of `(N, F)` values most nearly normal.

    They maximise the likelihood of a normal distribution, by scipy's search.
    """
    from scipy.stats import yeojohnson_normmax  # half a second that most commands never need

    exponents = []
    for column in values.T.cpu().numpy():
        exponents.append(float(yeojohnson_normmax(column)))
    return values.new_tensor(exponents)


def _power(values: Tensor, exponents: Tensor) -> Tensor:
    """Return `((1 + x)^e - 1) / e` of values >= 0, its limit where e is 0."""
    logarithms = values.log1p()
    vanishing = exponents.abs() < 1e-6  # (F,)
    divisors = torch.where(vanishing, 1.0, exponents)
    powers = (divisors * logarithms).clamp_max(_LARGEST_LOGARITHM).expm1() / divisors
    return torch.where(vanishing, logarithms, powers)


def _both_ends(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value and minus the smallest of each image, `(N,)` each."""
    flat = losses.wide(values).flatten(1)
    return flat.amax(1), -flat.amin(1)
