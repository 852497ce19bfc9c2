"""Curves of AUROC over the size of the perturbation, against a hand computation."""

from __future__ import annotations

import pytest
import torch

from robust_ood import L2, Linf
from robust_ood.attacks import PGD
from robust_ood.detectors import MSP, Detector, Mean
from robust_ood.errors import UserError
from robust_ood.evaluation import curves
from robust_ood.evaluation.curves import ScoreTrace


def run():
    scores = torch.tensor([[1.0, 4.0], [0.5, 3.0], [0.1, 1.0]])  # (steps + 1, N)
    linf = torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.2, 0.4]])
    return ScoreTrace(scores, linf, 2 * linf)


@pytest.mark.parametrize(
    ("size", "by_hand"),
    [
        (0.0, [1.0, 4.0]),
        (0.05, [0.75, 3.75]),
        (0.1, [0.5, 3.5]),
        (0.15, [0.3, 3.25]),
        (0.3, [0.1, 2.0]),
        (9, [0.1, 1.0]),
    ],
)
def test_scores_are_interpolated_image_by_image(size, by_hand):
    assert curves.scores_at(run(), size).tolist() == pytest.approx(by_hand)
    assert curves.scores_at(run(), 2 * size, "L2").tolist() == pytest.approx(by_hand)


def test_where_the_size_stands_still_the_last_step_counts():
    stuck = ScoreTrace(
        torch.tensor([[4.0], [3.0], [2.0], [1.0]]),
        torch.tensor([[0.0], [0.1], [0.1], [0.05]]),
        None,
    )
    assert curves.scores_at(stuck, 0.1).tolist() == pytest.approx([1.0])
    assert curves.scores_at(stuck, 0.05).tolist() == pytest.approx([2.5])


def test_the_curve_by_hand():
    outliers = torch.tensor([0.6, 0.4])
    found = curves.curve(run(), outliers, [0.0, 0.1, 0.2, 0.4])
    # At 0: 1.0 and 4.0 beat both. At 0.1: 0.5 beats one of two, 3.5 both. At 0.2 and 0.4: 0.1 beats
    # none.
    assert found.aurocs == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert curves.loss_of_auroc(run(), outliers, 0.1) == pytest.approx((1.0, 0.75, -0.25))


class Linear(Detector):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, images):
        return (images * self.weight).flatten(1).sum(1)


def test_a_linear_score_falls_linearly_with_the_size():
    weight = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = 0.4 + 0.2 * torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = curves.trace(Linear(weight), images, PGD(Linf(0.1), steps=10, step_size=0.01), 1)
    assert found.scores.shape == found.linf.shape == found.l2.shape == (11, 5)
    for size in (0.0, 0.013, 0.05, 0.1):
        expected = Linear(weight)(images) - size * weight.abs().sum()
        assert torch.allclose(curves.scores_at(found, size).float(), expected, atol=1e-4)
        assert torch.allclose(
            curves.scores_at(found, size * 48**0.5, "L2").float(), expected, atol=1e-4
        )


def test_the_curve_of_an_ensemble_is_that_of_its_mean_score():
    one, other = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    images = 0.4 + 0.2 * torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = curves.trace(
        Mean([Linear(one), Linear(other)]), images, PGD(Linf(0.1), steps=10, step_size=0.01), -1
    )
    mean = (one + other) / 2
    for size in (0.0, 0.037, 0.1):
        expected = Linear(mean)(images) + size * mean.abs().sum()
        assert torch.allclose(curves.scores_at(found, size).float(), expected, atol=1e-4)


def test_true_scores_are_traced_and_the_auroc_falls(trained):
    net, inliers, _, outliers = trained
    pgd = PGD(L2(2.0), steps=10)
    low, high = curves.trace(MSP(net), inliers, pgd, 1), curves.trace(MSP(net), outliers, pgd, -1)
    assert torch.equal(low.scores[0], MSP(net)(inliers))
    found = curves.curve(low, high, [0.0, 0.5, 1.0, 2.0], "L2").aurocs
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] - 0.3
    halves = curves.concatenate(
        [curves.trace(MSP(net), part, pgd, 1) for part in inliers.split(12)]
    )
    assert torch.allclose(halves.scores, low.scores, atol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="sizes: -1"):
        curves.curve(run(), run(), [-1])
    with pytest.raises(UserError, match="neither is a trace"):
        curves.curve(torch.zeros(2), torch.zeros(2), [0.1])
