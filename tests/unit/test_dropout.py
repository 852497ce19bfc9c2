"""Dropout at test time: every kind of it drops, alike for all images, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, lower_score
from robust_ood.detectors.dropout import kept_mask
from robust_ood.errors import UserError
from robust_ood.models import WideResNet

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Dropout of maps as a layer, of features as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.drop = nn.Dropout2d(0.25)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.drop(self.conv(images).relu()).mean((2, 3))
        return self.head(F.dropout(self.norm(features * 4), 0.5, self.training))


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def naive(net, images, draws, seed=0):
    """The mean softmax of one image at a time, every mask written out."""
    rows = []
    for image in images:
        p = 0
        for draw in range(draws):
            channels, units = (
                kept_mask(shape, rate, seed, draw, call)
                for call, (shape, rate) in enumerate((((6, 1, 1), 0.25), ((6,), 0.5)))
            )
            features = (net.conv(image[None]).relu() * channels).mean((2, 3))
            p = p + net.head(net.norm(features * 4) * units).softmax(1)[0] / draws
        rows.append(p.amax())
    return torch.stack(rows)


def test_all_dropout_drops_and_all_images_share_the_masks(net):
    detector = detectors.MCDropout(net, draws=7)
    with torch.no_grad():
        published, scores = detector.published(IMAGES), detector(IMAGES)
        torch.testing.assert_close(published, naive(net, IMAGES, 7))
        torch.testing.assert_close(detector(IMAGES[2:3]), scores[2:3])
        torch.testing.assert_close(detector(IMAGES), scores)
    assert (published[scores.argsort()].diff() >= 0).all()
    assert not torch.equal(detectors.MCDropout(net, draws=7, seed=1)(IMAGES), scores)


def test_the_network_stays_as_it_is(net):
    before, plain = net.norm.running_mean.clone(), net(IMAGES)
    detectors.MCDropout(net, draws=2)(IMAGES)
    assert torch.equal(net.norm.running_mean, before)
    assert torch.equal(net(IMAGES), plain)
    assert not any(module.training for module in net.modules())


def test_masks_keep_the_mean():
    mask = kept_mask((100_000,), 0.3, 0, 0, 0)
    assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert mask.mean().item() == pytest.approx(1, abs=0.01)


def test_our_networks_drop_too_and_an_attack_goes_through_all_draws():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = WideResNet(10, 1, 4, dropout=0.3).eval()
    detector = detectors.MCDropout(net, draws=3)
    lost = lower_score(detector, IMAGES, PGD(Linf(4 / 255), steps=2))
    with torch.no_grad():
        assert (detector(lost) < detector(IMAGES)).all()


def test_a_network_without_dropout_is_refused_in_a_line():
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Dropout(0.0))
    with pytest.raises(UserError, match="net: Sequential has no dropout; expected"):
        detectors.MCDropout(net)(IMAGES)
