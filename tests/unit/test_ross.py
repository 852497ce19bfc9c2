"""ROSS: its formula, its threshold, and that an attack through it beats the published one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, attack_score
from robust_ood.detectors.smoothing import noise_blocks
from robust_ood.errors import UserError


class Projection(detectors.Detector):
    """A linear score of the pixels, or its square."""

    def __init__(self, power=1):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 48))
        self.power = power

    def forward(self, images):
        return (images.flatten(1) @ self.weight.to(images)) ** self.power


def images(count, seed=0):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def fitted(**settings):
    detector = detectors.ROSS(Projection(), **settings)
    detector.fit([images(40, 1)], validation=[images(64, 2)])
    return detector


def medians(detector, batch):
    (noise,) = noise_blocks(batch.shape[1:], detector.draws, 0, "smoothed score")
    scores = torch.stack([detector.detector(batch + detector.sigma * draw) for draw in noise])
    median = scores.sort(0).values[(len(scores) - 1) // 2]
    return median, (scores - median).abs().mean(0)


def test_the_score_is_its_formula():
    detector = fitted(weight=0.05, quantile=0.3)
    batch = images(20, 3)
    median, _ = medians(detector, images(64, 2))
    threshold = torch.quantile(median, 0.3)
    torch.testing.assert_close(detector.learned("threshold"), threshold.float())
    median, spread = medians(detector, batch)
    raised = threshold + (median - threshold) * (1 + 0.05 / spread)
    expected = torch.where(median > threshold, raised, median)
    assert 0 < int((median > threshold).sum()) < 20
    torch.testing.assert_close(detector(batch), expected, rtol=1e-4, atol=1e-4)


def test_without_a_weight_it_is_the_median():
    detector = fitted(weight=0.0)
    smoothed = detectors.Smoothed(Projection(), detector.sigma, draws=25)
    torch.testing.assert_close(detector(images(9, 4)), smoothed(images(9, 4)))


def test_a_constant_score_is_finite():
    detector = detectors.ROSS(Projection(power=0))
    detector.fit([images(8)], validation=[images(8)])
    assert detector(images(5)).isfinite().all()


def test_an_attack_through_it_beats_one_through_its_base(trained_on_blobs):
    net, loader, batch = trained_on_blobs
    detector = detectors.ROSS(detectors.MSP(net), sigma=0.05, weight=0.05)
    detector.fit(loader, validation=loader)
    attack = PGD(Linf(0.05), steps=10, restarts=1)
    adaptive = attack_score(detector, batch, attack, direction=1).values
    base = attack_score(detectors.MSP(net), batch, attack, direction=1).images
    published = detector(base)
    assert (adaptive <= detector(batch) + 1e-5).all()
    assert adaptive.mean() <= published.mean() + 1e-4


@pytest.fixture(scope="module")
def trained_on_blobs():
    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (120,), generator=draws)
    centres = torch.rand(3, 3, 4, 4, generator=draws)
    noise = 0.1 * torch.randn(120, 3, 4, 4, generator=draws)
    data = (centres[labels] + noise).clamp(0, 1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(data), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), [(data, labels)], data[:16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 1}, "draws: a spread needs 2"),
        ({"gradient_draws": 1}, "gradient_draws: a spread needs 2"),
        ({"weight": -0.1}, "weight: expected a number >= 0"),
        ({"weight": float("nan")}, "weight: expected a number, got nan"),
        ({"quantile": 1.0}, "quantile: expected a number in"),
        ({"sigma": 0}, "sigma: expected a standard deviation > 0"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        detectors.ROSS(Projection(), **settings)


def test_it_is_not_smoothed_again():
    with pytest.raises(UserError, match="smoothed already"):
        detectors.ROSS(fitted())
