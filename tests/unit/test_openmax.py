"""OpenMax: its Weibull fit, classes with few images, and its mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robust_ood import Linf, attacks, detectors
from robust_ood.detectors.fitting.statistics import LargestOfClasses
from robust_ood.detectors.openmax import fit_weibull
from robust_ood.errors import UserError

DRAWS = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(12, 4, generator=DRAWS) * 4
IMAGES = torch.rand(80, 3, 2, 2, generator=DRAWS)


def logits(images):
    return (F.adaptive_avg_pool2d(images, 2).flatten(1) - 0.5) @ WEIGHT  # of any size


def test_the_fit_has_a_greater_likelihood_than_its_surroundings():
    from scipy.stats import weibull_min

    tails = torch.rand(3, 20, generator=DRAWS, dtype=torch.float64) * torch.tensor(
        [[0.1], [3], [90]]
    )
    for row, smallest, k, log_scale in zip(tails.numpy(), *map(torch.Tensor.numpy, fit_weibull(tails)), strict=True):  # fmt: skip
        moved = 10_000 + row - smallest
        scale = 10_000 * np.exp(log_scale)
        best = weibull_min.logpdf(moved, k, scale=scale).sum()
        for factor in (0.99, 1.01):
            assert weibull_min.logpdf(moved, k * factor, scale=scale).sum() < best
            away = 10_000 * np.exp(log_scale * factor)
            assert weibull_min.logpdf(moved, k, scale=away).sum() < best


def test_places_that_are_empty_do_not_count():
    tail = torch.tensor([[5.0, 4.0, 2.0]], dtype=torch.float64)
    padded = torch.cat([tail, torch.full((1, 4), -torch.inf)], dim=1)
    for full, part in zip(fit_weibull(tail), fit_weibull(padded), strict=True):
        assert torch.allclose(full, part)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_the_largest_of_each_class_are_kept_whatever_the_batches(size):
    values = torch.randn(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values[::7] = values[0]  # ties
    values[3] = -torch.inf  # no value
    classes = torch.randint(4, (60,), generator=torch.Generator().manual_seed(2))
    classes[classes == 2] = 1  # a class without images
    for batch in (1, 7, 60):
        found = LargestOfClasses(4, size)
        for start in range(0, 60, batch):
            found.add(values[start : start + batch], classes[start : start + batch])
        for label in range(4):
            expected = torch.full((size,), -torch.inf, dtype=torch.float64)
            largest = values[classes == label].sort(descending=True).values[:size]
            expected[: len(largest)] = largest
            assert torch.equal(found.largest[label], expected)


def test_classes_that_are_never_right_and_tails_without_spread_are_finite():
    labels = logits(IMAGES).argmax(1)
    wrong = torch.where(labels == 2, 3, labels)  # class 2 has no image of its own
    wrong[:2] = 2  # but two that are predicted as others
    detector = detectors.OpenMax(logits).fit([(IMAGES, wrong)])
    scores = detector(IMAGES)
    assert scores.isfinite().all()
    same = detectors.OpenMax(logits).fit([(IMAGES[labels == 1][:1].repeat(4, 1, 1, 1), torch.ones(4, dtype=torch.long)), (IMAGES, labels)])  # fmt: skip
    assert same(IMAGES).isfinite().all()


def test_gradients_are_finite_where_the_distribution_is_certain():
    detector = detectors.OpenMax(logits).fit([(IMAGES, logits(IMAGES).argmax(1))])
    for factor in (0.0, 1.0, 100.0):
        far = (IMAGES * factor).requires_grad_()
        gradient = torch.autograd.grad(detector.stand_in(detector.score)(far).sum(), far)[0]
        assert gradient.isfinite().all()


def test_it_is_attacked_through_itself():
    detector = detectors.OpenMax(logits).fit([(IMAGES, logits(IMAGES).argmax(1))])
    lost = attacks.lower_score(detector, IMAGES, attacks.PGD(Linf(0.05), steps=5))
    assert (detector(lost) <= detector(IMAGES) + 1e-5).all()
    assert detector(lost).mean() < detector(IMAGES).mean() - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tail": 1}, "tail: expected a number of distances >= 2, got 1"),
        ({"top": 0}, "top: expected a number of classes >= 1, got 0"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        detectors.build("openmax", logits, **settings)


def test_a_class_without_images_is_named():
    with pytest.raises(UserError, match="gives no image of class 1, 2, 3"):
        detectors.OpenMax(logits).fit([(IMAGES, torch.zeros(80, dtype=torch.long))])
