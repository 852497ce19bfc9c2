"""The paired bootstrap over images and seeds: exact resamples, and what it calls a difference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robust_ood.errors import UserError
from robust_ood.metrics import auroc, delong_test, paired_bootstrap
from robust_ood.metrics.resampled import _aurocs, _copies


def drawn(count, seed, shift=0.0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=draws, dtype=torch.float64).mul(4).round() / 4 + shift


def test_each_resample_is_the_auroc_of_the_copied_scores():
    inliers = drawn(30, 0, 0.5).numpy()
    outliers = drawn(20, 1).numpy()
    draws = torch.Generator().manual_seed(0)
    of_inliers = _copies(draws, 5, 30)
    of_outliers = _copies(draws, 5, 20)
    found = _aurocs(inliers, outliers, of_inliers, of_outliers)
    for row, value in enumerate(found):
        repeated = np.repeat(inliers, of_inliers[row])
        others = np.repeat(outliers, of_outliers[row])
        assert len(repeated) == 30
        assert value == pytest.approx(auroc(torch.tensor(repeated), torch.tensor(others)))
    assert (of_inliers[0] == 1).all()


def test_of_two_networks_it_is_close_to_delongs_test():
    common = drawn(300, 2)
    id_scores = [common + 1, common + drawn(300, 3) / 2 + 1]
    ood = drawn(300, 4)
    ood_scores = [[ood], [ood + drawn(300, 5) / 2]]
    exact = delong_test(id_scores, ood_scores)
    found = paired_bootstrap(
        [[scores] for scores in id_scores], [[scores] for scores in ood_scores]
    )
    assert found.difference == pytest.approx(exact.difference)
    assert found.low == pytest.approx(exact.low, abs=0.003)
    assert found.p_value == pytest.approx(exact.p_value, abs=0.05)


def seeds_of(method, shifts):
    inliers = [drawn(80, 10 * method + seed, 1 + shift) for seed, shift in enumerate(shifts)]
    outliers = [[drawn(60, 500 + 10 * method + seed)] for seed in range(len(shifts))]
    return inliers, outliers


def test_seeds_that_differ_widen_the_interval():
    alike = seeds_of(1, [1.0, 1.0, 1.0, 1.0])
    apart = seeds_of(1, [2.5, -0.5, 2.5, -0.5])
    other = seeds_of(2, [0.0, 0.0, 0.0, 0.0])
    widths = []
    for method in (alike, apart):
        found = paired_bootstrap([method[0], other[0]], [method[1], other[1]])
        assert found.low < found.difference < found.high
        widths.append(found.high - found.low)
    assert widths[1] > 2 * widths[0]


def test_a_method_against_itself_does_not_differ():
    inliers, outliers = seeds_of(1, [1.0, 0.5])
    found = paired_bootstrap([inliers, inliers], [outliers, outliers])
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_methods_without_a_difference_are_rarely_told_apart():
    """Seeds and images both vary: five networks of each of two equal methods, many times."""
    found_different = 0
    for trial in range(60):
        draws = np.random.default_rng(trial)
        shared_in = draws.normal(1, 1, 60)
        shared_out = draws.normal(0, 1, 60)
        id_scores, ood_scores = [], []
        for _ in range(2):
            levels = draws.normal(0, 0.7, 5)
            id_scores.append([torch.tensor(shared_in + level) for level in levels])
            ood_scores.append([[torch.tensor(shared_out)] for _ in levels])
        test = paired_bootstrap(id_scores, ood_scores, samples=100, seed=trial)
        found_different += test.p_value < 0.05
    assert found_different <= 8  # 3 expected


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "words"),
    [
        ([[drawn(5, 0)]], [[[drawn(5, 0)]]], "id_scores: expected those of one or more"),
        ([[drawn(5, 0)], []], [[[drawn(5, 0)]], []], "id_scores: expected those of one or more"),
        (
            [[drawn(5, 0)], [drawn(6, 0)]],
            [[[drawn(5, 0)]], [[drawn(5, 0)]]],
            "a paired test needs the same images",
        ),
        (
            [[drawn(5, 0)], [drawn(5, 0)] * 2],
            [[[drawn(5, 0)]], [[drawn(5, 0)]]],
            "of 1 networks, where id_scores has 2",
        ),
    ],
)
def test_mistakes_are_named(id_scores, ood_scores, words):
    with pytest.raises(UserError, match=words):
        paired_bootstrap(id_scores, ood_scores)
