"""ATD: a discriminator on the features of a frozen network, attacked through it to the image."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer
from torch import nn

from robust_ood import Linf, detectors
from robust_ood.attacks import PGD, raise_score
from robust_ood.callbacks import Checkpoints, Guards
from robust_ood.data import Batch, OODData
from robust_ood.errors import UserError
from robust_ood.models import Discriminated, ThinResNet, describe, outputs, rebuild
from robust_ood.training import ATD, Optimization
from robust_ood.training.freezing import freeze

RADIUS = 8 / 255
ATTACK = PGD(Linf(RADIUS), steps=3, step_size=RADIUS / 2, random_start=False)


@pytest.fixture
def batch(make_images):
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    return Batch(make_images(6), labels, make_images(4, seed=1), torch.arange(6), epoch=2, step=5)


@pytest.fixture
def net(make_net):
    torch.manual_seed(0)
    return Discriminated(make_net(), hidden=(5,)).double().eval()


def climb(run, images):
    """Three sign steps up a value within the ball, written out."""
    current = images.clone()
    for _ in range(3):
        leaf = current.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(run(leaf).sum(), leaf)
        moved = current + RADIUS / 2 * gradient.sign()
        current = moved.clamp(images - RADIUS, images + RADIUS).clamp(0, 1)
    return current


def test_the_objective_is_its_formula(net, batch, make_images):
    method = ATD(net, ATTACK, outlier_weight=0.7, fake_weight=0.3, candidates=9)
    labels = torch.arange(40) % 4
    images = make_images(40, seed=3)
    method.fit_features(images, labels)
    features = outputs(net.net, images).features.detach()
    means = torch.stack([features[labels == label].mean(0) for label in range(4)])
    centred = features - means[labels]
    covariance = centred.T @ centred / 40
    covariance = covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance))
    torch.testing.assert_close(method.feature_means, means)
    torch.testing.assert_close(method.feature_factor @ method.feature_factor.T, covariance)

    width = features.shape[1]
    draws = torch.randn(6, 9, width, generator=method.draws("fake features", batch)).double()
    fakes = []
    for row, label in zip(draws, batch.labels, strict=True):
        farthest = max(row, key=lambda draw: float(draw.norm()))
        fakes.append(means[label] + method.feature_factor @ farthest)
    logit = net.discriminator_logits
    inliers = climb(lambda x: F.softplus(-logit(x)), batch.images)
    outliers = climb(lambda x: F.softplus(logit(x)), batch.outliers)
    expected = F.softplus(-logit(inliers)).mean() + 0.7 * F.softplus(logit(outliers)).mean()
    fake_logits = net.discriminator(torch.stack(fakes))[:, 0]
    expected = expected - 0.3 * (1 - fake_logits.sigmoid()).log().mean()
    torch.testing.assert_close(method.objective(batch), expected)


def test_fakes_are_tails(net):
    method = ATD(net, ATTACK, candidates=50)
    width = method.feature_means.shape[1]
    method.feature_factor.copy_(torch.eye(width))
    method.fitted.fill_(True)
    labels = torch.zeros(200, dtype=torch.long)
    lengths = {}
    for candidates in (1, 50):
        method.candidates = candidates
        fakes = method.fakes(labels, torch.Generator().manual_seed(0))
        lengths[candidates] = fakes.square().sum(1)
    chi_squared = torch.randn(20_000, width, generator=torch.Generator().manual_seed(1))
    tail = chi_squared.square().sum(1).quantile(0.9)
    assert (lengths[50] > tail).double().mean() > 0.95
    assert lengths[1].mean() < tail


def test_the_detector_scores_by_the_logit_and_is_attacked_through_it(net, batch):
    detector = detectors.build("discriminator", net)
    score = detector(batch.outliers)
    torch.testing.assert_close(score, net.discriminator_logits(batch.outliers))
    out = outputs(net, batch.outliers)
    torch.testing.assert_close(detector.published_score(out), score.sigmoid())
    attack = PGD(Linf(RADIUS), steps=5, precision="float32")
    attacked = raise_score(detector, batch.outliers, attack, indices=torch.arange(4))
    assert (detector(attacked) > score).all()


def test_a_checkpoint_describes_it(make_images):
    net = Discriminated(ThinResNet(8, 4), hidden=(5, 3)).eval()
    again = rebuild(describe(net)).eval()
    again.load_state_dict(net.state_dict())
    images = make_images(3, dtype=torch.float32)
    torch.testing.assert_close(again.discriminator_logits(images), net.discriminator_logits(images))


class Blind(nn.Module):
    """A classifier whose features do not depend on the image for autograd."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.head = nn.Linear(24, 4)

    def forward(self, images):
        with torch.no_grad():
            features = outputs(self.net, images).features
        return self.head(features)


MISTAKES = [
    (lambda net: ATD(net, ATTACK), "net: ATD trains a discriminator.*Discriminated"),
    (lambda net: Discriminated(Discriminated(net)), "net: has a discriminator already"),
    (lambda net: Discriminated(net, hidden=(0,)), "hidden: 0 is not a width >= 1"),
    (lambda net: Discriminated(nn.Conv2d(3, 4, 3)), "head"),
    (lambda net: detectors.build("discriminator", net), "reads a discriminator's logit"),
    (lambda net: ATD(Discriminated(net), ATTACK, candidates=0), "candidates: 0"),
    (lambda net: ATD(Discriminated(net), ATTACK, fake_weight=-1.0), "fake_weight: -1.0"),
    (lambda net: ATD(Discriminated(net), ATTACK, outlier_weight=-1.0), "outlier_weight: -1.0"),
    (lambda net: ATD(Discriminated(net), ATTACK, statistics_images=7), "statistics_images: 7"),
]


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_mistakes_are_named(make_net, make, message):
    with pytest.raises(UserError, match=message):
        make(make_net())


def test_a_class_without_images_is_named(net, make_images):
    method = ATD(net, ATTACK)
    with pytest.raises(UserError, match=r"statistics_images: class 3 has none among the 6"):
        method.fit_features(make_images(6), torch.arange(6) % 3)


# Runs
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 32), ("outliers", 50), ("validation", 12), ("ood", 9)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(count) % 4)
    return folder


def fit(net, arrays, folder, resume=None, callbacks=(), **settings):
    method = ATD(net, {"name": "pgd", "radius": RADIUS, "steps": 2}, **settings)
    data = OODData(
        "train", "validation", outliers="outliers", validation_ood=["ood"], root=arrays,
        num_classes=4, batch_size=8, outlier_batch_size=3, augmentation="none",
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, max_epochs=2,
        callbacks=[Checkpoints(every_n_steps=1, keep_every_n_steps=1), *callbacks],
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, precision="bf16-mixed",
    )  # fmt: skip
    trainer.fit(method, data, ckpt_path=resume)
    return method, trainer


def test_the_backbone_stays_and_resuming_is_exact(make_net, arrays, tmp_path):
    def network(seed):
        torch.manual_seed(seed)
        return Discriminated(make_net(dtype=torch.float32), hidden=(5,))

    settings = {"optimization": Optimization(0.05), "weight_perturbation": 0.01}
    net = network(0)
    before = copy.deepcopy(net.net.state_dict())
    start = net.discriminator[0].weight.clone()
    whole, _ = fit(net, arrays, tmp_path / "whole", **settings)
    for name, value in before.items():
        assert torch.equal(value, net.net.state_dict()[name]), name
    assert not torch.equal(net.discriminator[0].weight, start)
    checkpoint = tmp_path / "whole" / "step-3.ckpt"
    again, _ = fit(network(1), arrays, tmp_path / "again", checkpoint, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_backbone_without_gradients_to_the_image_is_named(make_net, arrays, tmp_path):
    net = Discriminated(Blind(make_net(dtype=torch.float32)))
    with pytest.raises(UserError, match="net: the features of Blind carry no gradient"):
        fit(net, arrays, tmp_path)


def test_a_backbone_that_guesses_is_said_and_guards_use_the_discriminator(
    make_net, arrays, tmp_path
):
    net = make_net(dtype=torch.float32)
    nn.init.zeros_(net.head.weight)
    with pytest.warns(UserWarning, match="classifies 25% of the training images rightly"):
        _, trainer = fit(Discriminated(net), arrays, tmp_path, callbacks=[Guards()])
    assert "val/pgd_auroc" not in trainer.callback_metrics


def test_begin_from_fills_the_classifier(make_net, tmp_path):
    other = make_net(seed=5, dtype=torch.float32)
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    net = Discriminated(make_net(dtype=torch.float32))
    method = ATD(net, ATTACK)
    method.begin_from(tmp_path / "weights.pt")
    assert torch.equal(net.net.head.weight, other.head.weight)
    frozen = freeze(net, method.optimization.trainable)
    trained = [name for name, weight in net.named_parameters() if weight.requires_grad]
    assert all(name.startswith("discriminator.") for name in trained)
    assert trained
    frozen.release()
