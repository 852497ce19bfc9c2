"""CombOOD: powers that make extremes normal, columns that do not vary, and scores that are finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from robust_ood import detectors
from robust_ood.detectors.extremes import normal_exponents, yeo_johnson
from robust_ood.errors import UserError

IMAGES = torch.rand(60, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Rectified(nn.Module):
    """A network whose one layer of maps is never below zero, so that its minimum is constant."""

    feature_layers = ("rectified",)

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3)
        self.rectified = nn.ReLU()
        self.head = nn.Linear(8, 4)
        draws = torch.Generator().manual_seed(1)
        for weights in self.parameters():
            weights.data.copy_(torch.randn(weights.shape, generator=draws) / 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.rectified(self.convolution(images)).mean((2, 3)))


@pytest.mark.parametrize("exponent", [-2.0, 0.0, 0.5, 1.0, 2.0, 3.5])
def test_powers_are_scipys(exponent):
    values = torch.linspace(-4, 4, 41, dtype=torch.float64)
    ours = yeo_johnson(values[:, None], torch.tensor([exponent], dtype=torch.float64))
    theirs = stats.yeojohnson(values.numpy(), exponent)
    np.testing.assert_allclose(ours[:, 0].numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_the_exponents_undo_what_made_normal_values_skewed():
    draws = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, 1, generator=draws, dtype=torch.float64)
    skewed = normal.exp() - 1  # e = 0 gives the positive ones back
    (exponent,) = normal_exponents(skewed).tolist()
    before = stats.skew(skewed[:, 0].numpy())
    after = stats.skew(yeo_johnson(skewed, torch.tensor([exponent]).double())[:, 0].numpy())
    assert before > 3
    assert abs(after) < 0.2


def test_columns_that_do_not_vary_add_nothing():
    net = Rectified().eval()
    with torch.no_grad():
        assert net.rectified(net.convolution(IMAGES)).flatten(1).amin(1).abs().max() == 0
    detector = detectors.CombOOD(net, neighbours=5).fit([IMAGES])
    with torch.no_grad():
        scores = detector(IMAGES)
    assert scores.isfinite().all()
    assert scores.std() > 0
    # The minimum's row of what whitens meets a column of zeros.
    assert detector.learned("means")[1] == 0
    assert detector.learned("scales")[1] == 1


def test_scores_and_gradients_are_finite_on_images_of_the_bank_and_far_from_it():
    net = Rectified().eval()
    detector = detectors.CombOOD(net, neighbours=1).fit([IMAGES])
    far = torch.stack([torch.ones(3, 6, 6), torch.zeros(3, 6, 6)])
    images = torch.cat([IMAGES[:4], far]).requires_grad_()
    scores = detector(images)
    assert scores.isfinite().all()
    assert scores[:4].min() > scores[4:].max()
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert gradient.isfinite().all()
    with torch.no_grad():
        net.convolution.weight.mul_(1e6)  # extremes far beyond those of the training images
        assert detector(images).isfinite().all()


@pytest.mark.parametrize("index", ["faiss-flat", "faiss-ivf"])
def test_an_index_finds_the_same_neighbours(index):
    pytest.importorskip("faiss")
    net = Rectified().eval()
    scores = []
    for kind in ("exact", index):
        detector = detectors.CombOOD(net, neighbours=3, index=kind, probes=8).fit([IMAGES])
        with torch.no_grad():
            scores.append(detector(IMAGES[:10].flip(3)))
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularisation": 0.0}, "regularisation: expected a number > 0, got 0.0"),
        ({"neighbours": 0}, "neighbours: expected 1"),
        ({"layers": "rectifed"}, "rectified"),
        ({"layers": []}, "layers: expected one or more layers"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        detectors.CombOOD(Rectified(), **settings)


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(UserError, match=r"number of the loader's images \(60\), got 61"):
        detectors.CombOOD(Rectified(), neighbours=61).fit([IMAGES])


def test_a_state_of_other_layers_is_refused():
    net = Rectified().eval()
    state = detectors.CombOOD(net, neighbours=3).fit([IMAGES]).state_dict()
    with pytest.raises(UserError, match="another detector"):
        detectors.CombOOD(net, "convolution", neighbours=3).load_state_dict(state)
