"""A classifier by a vote under Gaussian noise, and the radius in which its vote cannot change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from robust_ood import safe_spots
from robust_ood.arguments import typed
from robust_ood.certify.bounds import (
    SEED_PURPOSE,
    Question,
    Radius,
    ScoreBounds,
    is_single,
    named_detectors,
    read_radii,
)
from robust_ood.certify.confidence import clopper_pearson_lower, fair_coin_p_value
from robust_ood.certify.noise import Noise, checked_indices
from robust_ood.detectors import Detector, OutputsDetector
from robust_ood.detectors.smoothing import check_draws, check_share, checked_sigma
from robust_ood.errors import UserError
from robust_ood.inputs import checked
from robust_ood.models import Outputs
from robust_ood.modes import ordinary
from robust_ood.randomness import derive_seed
from robust_ood.regions import Fraction

ABSTAINED = -1
"""The class of an image on which the smoothed classifier does not commit itself."""
_CLASS = "predicted class"
"""What reads the class in a pass, beside detectors of any name."""


class _PredictedClass(OutputsDetector):
    """The likeliest class as a number, so that a vote shares its passes with detectors."""

    def score(self, out: Outputs) -> Tensor:
        return out.logits.argmax(1).float()


@dataclass(frozen=True)
class ClassCertificates:
    """What is certified of a smoothed classifier's classes.

    Args:
        classes: `(N,)`, `ABSTAINED` where it abstains.
        radii: `(N,)`, the L2 radius inside which no attack changes the class; 0 where it abstains.
    """

    classes: Tensor
    radii: Tensor

    def accuracy(self, labels: Tensor, radius: Radius = 0.0) -> float:
        """Return the share of images that are certified right within an L2 radius.

        Args:
            labels: true classes `(N,)`.
            radius: >= 0; at 0, the share that is right without abstaining.
        """
        bound = float(Fraction(radius))
        if bound < 0:
            raise UserError(f"radius: {radius} is negative; a radius is >= 0 in pixel fractions")
        if labels.shape != self.classes.shape or not len(labels):
            raise UserError(
                f"labels: shape {tuple(labels.shape)} for {len(self.classes)} images, expected one "
                "each"
            )
        # At its very radius a class may be tied.
        right = (self.classes == labels.cpu()) & (self.radii > bound)
        return float(right.double().mean())


class SmoothedClassifier:
    """The class that a network gives most often under Gaussian noise.

    Source: Cohen et al. 2019, Alg. 1 (`predict`, `certify`); safe spots paper, Sec. 3.4 (`attack`).
    Noisy pixels are not clipped to [0, 1]. The noise is drawn for each image by its index and the
    seed, for choosing a class, for certifying it and for predicting independently.

    Args:
        net: classifier, images `(N, C, H, W)` to logits `(N, K)`; in eval mode meanwhile.
        sigma: standard deviation of the noise in pixel fractions, > 0.
        n0: draws that choose the class to certify.
        n: draws that certify it, or that predict.
        alpha: the probability with which a certificate, or a prediction, may fail.
        seed: of the noise.
        batch_size: noisy images at a time.
    """

    @typed
    def __init__(
        self,
        net: nn.Module,
        sigma: Radius,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        *,
        seed: int = 0,
        batch_size: int = 512,
    ) -> None:
        self.net = net
        self.sigma = checked_sigma(sigma)
        for field, draws in (("n0", n0), ("n", n), ("batch_size", batch_size)):
            check_draws(field, draws)
        check_share("alpha", alpha)
        self.n0 = n0
        self.n = n
        self.alpha = alpha
        self.seed = seed
        self.batch_size = batch_size
        # Not even a unanimous vote would be sure.
        if not clopper_pearson_lower(n, n, alpha) > 0.5:
            needed = 1
            while not clopper_pearson_lower(needed, needed, alpha) > 0.5:
                needed += 1
            raise UserError(
                f"n: {n} draws certify no class with alpha {alpha:g}; {needed} or more are needed"
            )

    def predict(
        self, images: Tensor, *, indices: Tensor | None = None, abstain: bool = True
    ) -> Tensor:
        """Return classes `(N,)` by the vote of n draws.

        Args:
            images: `(N, C, H, W)` in [0, 1].
            indices: the images' indices in their set `(N,)`, which key the noise; 0..N-1 by
                default.
            abstain: give `ABSTAINED` where a two-sided binomial test of the two most frequent
                classes does not tell them apart at `alpha`; else always the most frequent.
        """
        votes = self.votes(images, self.n, "prediction", indices=indices)
        top = votes.topk(2, dim=1)  # counts and classes, (N, 2) each
        classes = top.indices[:, 0]
        if not abstain:
            return classes
        unsure = []
        for first, second in top.values.tolist():
            unsure.append(fair_coin_p_value(first, first + second) > self.alpha)
        return classes.where(~torch.tensor(unsure, dtype=torch.bool), torch.tensor(ABSTAINED))

    def certify(self, images: Tensor, *, indices: Tensor | None = None) -> ClassCertificates:
        """Return classes and the radii in which they cannot change, each sure to `1 - alpha`.

        `images` are `(N, C, H, W)`, `indices` as of `predict`.
        """
        images = checked(images)
        certificates = []
        for image, index in zip(images, checked_indices(indices, len(images)), strict=True):
            certificates.append(self._certificate(image, index, {})[0])
        return _joined(certificates)

    def certify_with(
        self,
        detectors: Mapping[str, Detector],
        images: Tensor,
        *,
        radius: Radius | Sequence[Radius],
        quantile: float = 0.5,
        indices: Tensor | None = None,
    ) -> tuple[ClassCertificates, dict[str, ScoreBounds]]:
        """Return the same certificates, and bounds of scores from the same noisy passes.

        The bounds are those of `score_bounds` with this sigma, `draws=n`, alpha and seed.

        Args:
            detectors: by name; those that read the outputs of this network share its passes.
            images: `(N, C, H, W)` in [0, 1].
            radius: of the bounds, one or several.
            quantile: of the smoothed scores.
            indices: as of `predict`.
        """
        named = named_detectors(dict(detectors))
        if _CLASS in named:
            raise UserError(f"detectors: {_CLASS!r} names the vote; expected another name")
        images = checked(images)
        radii = read_radii(radius, "L2", images)
        question = Question(radii, self.sigma, self.n, self.alpha, quantile)
        certificates = []
        columns: dict[str, list[Tensor]] = {name: [] for name in named}
        for position, index in enumerate(checked_indices(indices, len(images))):
            if position == 0:
                self._noise.refuse_random(named, images[0])
            certificate, scores = self._certificate(images[position], index, named)
            certificates.append(certificate)
            for name in named:
                columns[name].append(question.column(scores[name]))
        bounds = {}
        for name in named:
            bounds[name] = question.answer(columns[name], single=is_single(radius))
        return _joined(certificates), bounds

    def attack(
        self,
        images: Tensor,
        labels: Tensor,
        radius: Radius,
        *,
        steps: int = 20,
        restarts: int = 1,
        samples: int = 16,
        judges: int = 100,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Return images on which the vote for their labels is weakest: randomised PGD in L2.

        Source: safe spots paper, Eq. 3 (Salman et al. 2019): ascent on minus the logarithm of the
        mean softmax, with fresh noise at each step. The image itself and the restarts compete by
        the votes of further draws.

        Args:
            images: `(N, C, H, W)` in [0, 1].
            labels: classes `(N,)` that the attacker turns away from.
            radius: in L2, pixel fractions.
            steps: gradient steps, each of a quarter of the radius.
            restarts: independent runs.
            samples: noisy copies of each image at each step; memory grows with them.
            judges: draws of the vote that chooses.
            indices: as of `predict`.
        """
        for field, number in (("restarts", restarts), ("samples", samples), ("judges", judges)):
            check_draws(field, number)
        images = ordinary(checked(images))
        labels = ordinary(labels)
        keys = torch.tensor(checked_indices(indices, len(images)), dtype=torch.int64)
        # The image itself is the first candidate: an attack never helps.
        weakest = images
        support = self._support(images, labels, judges, keys)
        for restart in range(restarts):
            seed = derive_seed(self.seed, "smoothed attack", restart)
            moved = []
            for batch in torch.split(torch.arange(len(images)), max(1, self.batch_size // samples)):
                attacked = safe_spots.attack(
                    self.net,
                    images[batch],
                    labels[batch],
                    radius,
                    "L2",
                    steps=steps,
                    smoothing=safe_spots.Smoothing(self.sigma, samples),
                    seed=seed,
                    indices=keys[batch],
                )
                moved.append(attacked)
            candidates = torch.cat(moved)
            # The same draws judge all candidates, and none of those that made or will count them.
            moved_support = self._support(candidates, labels, judges, keys)
            weaker = moved_support < support  # (N,), on the CPU
            support = torch.where(weaker, moved_support, support)
            kept = weaker.to(images.device).view(-1, 1, 1, 1)
            weakest = torch.where(kept, candidates, weakest)
        return weakest

    def votes(
        self, images: Tensor, draws: int, purpose: str, *, indices: Tensor | None = None
    ) -> Tensor:
        """Return how many draws gave each class, `(N, K)`, on the CPU.

        Args:
            images: `(N, C, H, W)` in [0, 1].
            draws: noisy copies of each.
            purpose: what the draws are for; other words, independent draws.
            indices: as of `predict`.
        """
        images = checked(images)
        check_draws("draws", draws)
        reader = _PredictedClass(self.net)
        votes = torch.zeros(len(images), reader.num_classes, dtype=torch.int64)
        for position, index in enumerate(checked_indices(indices, len(images))):
            scores = self._noise.scores({_CLASS: reader}, images[position], draws, purpose, index)
            votes[position] = scores[_CLASS].long().bincount(minlength=reader.num_classes)
        return votes

    @property
    def _noise(self) -> Noise:
        return Noise(self.sigma, self.seed, self.batch_size)

    def _support(self, images: Tensor, labels: Tensor, draws: int, keys: Tensor) -> Tensor:
        """Return the labels' votes minus the most of another class, `(N,)`."""
        votes = self.votes(images, draws, "attack", indices=keys)
        columns = labels.cpu()[:, None]  # (N, 1)
        others = votes.scatter(1, columns, -1).amax(1)  # fewer than any vote at the label
        return votes.gather(1, columns)[:, 0] - others

    def _certificate(
        self, image: Tensor, index: int, detectors: Mapping[str, Detector]
    ) -> tuple[tuple[int, float], dict[str, Tensor]]:
        """Return an image's class and radius, and the detectors' scores of its n noisy copies."""
        # The class is chosen on other draws than those that certify it (Cohen et al. 2019).
        readers: dict[str, Detector] = {_CLASS: _PredictedClass(self.net)}
        chosen = self._noise.scores(readers, image, self.n0, "selection", index)
        top = int(chosen[_CLASS].long().bincount().argmax())
        readers.update(detectors)
        scores = self._noise.scores(readers, image, self.n, SEED_PURPOSE, index)
        agreeing = int((scores[_CLASS] == top).sum())
        likely = clopper_pearson_lower(agreeing, self.n, self.alpha)
        # The others together have the rest of the probability, so a class beyond a half wins.
        if likely > 0.5:
            return (top, self.sigma * float(ndtri(likely))), scores
        return (ABSTAINED, 0.0), scores


@typed
def smoothed_classifier(
    net: nn.Module,
    sigma: Radius,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    *,
    seed: int = 0,
    batch_size: int = 512,
) -> SmoothedClassifier:
    """Return the smoothed classifier of a network, images `(N, C, H, W)` to classes `(N,)`.

    The arguments are those of `SmoothedClassifier`.
    """
    return SmoothedClassifier(net, sigma, n0, n, alpha, seed=seed, batch_size=batch_size)


def _joined(certificates: list[tuple[int, float]]) -> ClassCertificates:
    classes = torch.tensor([number for number, _ in certificates], dtype=torch.int64)
    radii = torch.tensor([radius for _, radius in certificates], dtype=torch.float64)
    # float64, because radii are compared with those that users write.
    return ClassCertificates(classes, radii)
