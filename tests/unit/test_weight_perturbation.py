"""Adversarial weight perturbation: by hand in float64, restored to the bit, and resumable."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Trainer

from robust_ood import Linf
from robust_ood.attacks import PGD
from robust_ood.callbacks import Averaging, Checkpoints
from robust_ood.data import Batch, OODData
from robust_ood.errors import UserError
from robust_ood.models import OutlierClass
from robust_ood.training import ACET, ADV, ALOE, ATOM, HALO, Optimization, SafeSpotAware

RADIUS = 8 / 255
GAMMA = 0.05
ATTACK = PGD(Linf(RADIUS), steps=2, step_size=RADIUS / 2, random_start=False)
STARTED = PGD(Linf(RADIUS), steps=2, step_size=RADIUS / 2)


@pytest.fixture
def batch(make_images):
    labels = torch.tensor([0, 1, 2, 3, 1, 2])
    return Batch(make_images(6), labels, make_images(4, seed=1), torch.arange(6), epoch=2, step=5)


@pytest.fixture
def net(make_net):
    made = make_net()
    made.drop.p = 0.0
    return made.train()


def moved_by_hand(net, loss):
    """Move each weight of two dimensions or more by gamma of its length, up the loss."""
    names = [name for name, weight in net.named_parameters() if weight.ndim >= 2]
    weights = [net.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(loss, weights)
    assert len(names) == 2
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight += GAMMA * weight.norm() * gradient / gradient.norm()


def uniform(logits):
    return -logits.log_softmax(1).mean(1)


def aloe(logits, batch):
    return F.cross_entropy(logits[:6], batch.labels) + 0.7 * uniform(logits[6:]).mean()


def acet(logits, batch):
    confidence = logits[6:].softmax(1).amax(1).log()
    return F.cross_entropy(logits[:6], batch.labels) + 0.7 * confidence.mean()


@pytest.mark.parametrize(("make", "formula"), [(ALOE, aloe), (ACET, acet)])
def test_the_loss_is_that_of_weights_which_raise_it(net, batch, make, formula):
    settings = {"outlier_attack": ATTACK, "outlier_weight": 0.7, "weight_perturbation": GAMMA}
    method = make(net, inlier_attack=ATTACK, **settings)
    start = copy.deepcopy(net.state_dict())
    images = torch.cat(make(net, inlier_attack=ATTACK, **settings).attacked(batch))
    by_hand = copy.deepcopy(net)
    moved_by_hand(by_hand, formula(by_hand(images), batch))
    by_hand.load_state_dict(
        {name: value for name, value in start.items() if "running" in name}, strict=False
    )
    expected = formula(by_hand(images), batch)
    expected.backward()

    loss = method.training_step(batch, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    loss.backward()
    assert not torch.equal(net.conv.weight, start["conv.weight"])
    method.on_after_backward()
    for name, weight in net.named_parameters():
        assert torch.equal(weight, start[name]), name
        torch.testing.assert_close(weight.grad, by_hand.get_parameter(name).grad)
    torch.testing.assert_close(net.norm.running_mean, by_hand.norm.running_mean)
    assert net.norm.num_batches_tracked == start["norm.num_batches_tracked"] + 1


OTHERS = {
    "ADV": lambda net: ADV(net, STARTED, weight_perturbation=GAMMA),
    "ATOM": lambda net: ATOM(OutlierClass(net).double(), STARTED, weight_perturbation=GAMMA),
    "HALO": lambda net: HALO(net, STARTED, weight_perturbation=GAMMA),
    "safe spots": lambda net: SafeSpotAware(
        net, ATTACK, ATTACK, 0.5, 0.1, attack_mode="train", weight_perturbation=GAMMA
    ),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_every_method_searches_once_and_keeps_its_weights(net, batch, make, monkeypatch):
    method = make(net)
    method.train()
    start = [weight.clone() for weight in method.net.parameters()]
    searched = []
    attack = method._attacked

    def counted(*arguments):
        searched.append(arguments[-1])
        return attack(*arguments)

    monkeypatch.setattr(method, "_attacked", counted)
    for dtype in (None, torch.bfloat16):
        searched.clear()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = method.training_step(batch, 0)
        loss.backward()
        method.on_after_backward()
        assert len(searched) == len(set(searched)) > 0
        assert loss.isfinite()
        for weight, before in zip(method.net.parameters(), start, strict=True):
            assert torch.equal(weight, before)


def test_a_step_that_was_broken_off_is_undone_by_the_next(net, batch):
    method = ADV(net, ATTACK, weight_perturbation=GAMMA)
    start = net.conv.weight.clone()
    statistics = {name: value.clone() for name, value in net.named_buffers()}
    first = method.training_step(batch, 0)
    net.load_state_dict(statistics, strict=False)  # which the step has moved
    second = method.training_step(batch, 0)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    method.on_after_backward()
    assert torch.equal(net.conv.weight, start)


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_a_size_that_is_none_is_named(make_net, size):
    with pytest.raises(UserError, match="weight_perturbation"):
        ADV(make_net(), ATTACK, weight_perturbation=size)


# Runs
# ---------------------------------------------------------------------------------------------


def fit(make_net, folder, data, resume=None, precision="32-true"):
    torch.manual_seed(1 if resume else 0)
    net = make_net(seed=3 if resume else 0, dtype=torch.float32)
    method = ALOE(net, STARTED, optimization=Optimization(0.05), weight_perturbation=GAMMA)
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, max_epochs=2,
        callbacks=[Checkpoints(every_n_steps=1, keep_every_n_steps=1), Averaging(0.9)],
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        use_distributed_sampler=False, accumulate_grad_batches=2, precision=precision,
    )  # fmt: skip
    trainer.fit(method, OODData(**data), ckpt_path=resume)
    return method.state_dict()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_resuming_is_exact(make_net, tmp_path, precision):
    draws = np.random.default_rng(0)
    for name in ("train", "outliers"):
        images = draws.integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=draws.integers(0, 4, 32))
    data = {
        "train": "train", "outliers": "outliers", "root": tmp_path, "num_classes": 4,
        "batch_size": 8, "outlier_batch_size": 3, "augmentation": "none",
    }  # fmt: skip
    whole = fit(make_net, tmp_path / "whole", data, precision=precision)
    checkpoint = tmp_path / "whole" / "step-1.ckpt"
    again = fit(make_net, tmp_path / "again", data, checkpoint, precision)
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
