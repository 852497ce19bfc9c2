"""Training "for free": by hand in float64, its cost, what it refuses, and exact resuming."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader

from robust_ood import L2, Linf, Unbounded
from robust_ood.attacks import TrainingBudget, budget_of, build
from robust_ood.callbacks import Averaging, Checkpoints, Guards
from robust_ood.data import OODData
from robust_ood.errors import UserError
from robust_ood.models import OutlierClass
from robust_ood.rules import AutoPGD
from robust_ood.training import (
    ACET,
    ADV,
    ALOE,
    AOE,
    ATOM,
    HALO,
    RATIO,
    EnergyMargin,
    Optimization,
    SafeSpotAware,
)

RADIUS = 16 / 255
RATE = 0.05
GAMMA = 0.05
FREE = {"name": "pgd", "radius": RADIUS, "steps": 1, "replays": 3}
FREE_L2 = {"name": "pgd", "norm": "L2", "radius": 0.5, "steps": 1, "replays": 3}
PLAIN = {"name": "pgd", "radius": RADIUS, "steps": 2}
SGD = Optimization(RATE, {"name": "sgd", "momentum": 0, "nesterov": False}, "constant")


def free(make, attack=FREE, **settings):
    """Return what makes a method with replays, which begins at the images as the paper does."""
    start = {"random_start": False}
    return lambda net: make(
        net, {**attack, **start}, attack_mode="train", optimization=SGD, **settings
    )


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    draws = np.random.default_rng(0)
    for name, count in (("train", 56), ("validation", 12), ("outliers", 50), ("ood", 9)):
        images = draws.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=draws.integers(0, 4, count))
    return folder


def data(arrays, **settings):
    return OODData(
        "train", "validation", outliers="outliers", validation_ood=["ood"], root=arrays,
        num_classes=4, batch_size=8, outlier_batch_size=5, **settings,
    )  # fmt: skip


def fit(method, arrays, folder, *callbacks, resume=None, augmentation="none", **options):
    settings = {"max_epochs": 1, "precision": "64-true", "limit_val_batches": 0, **options}
    settings["enable_checkpointing"] = any(isinstance(part, Checkpoints) for part in callbacks)
    trainer = Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, **settings,
    )  # fmt: skip
    trainer.fit(method.train(), data(arrays, augmentation=augmentation), ckpt_path=resume)
    return trainer


class Seen(Callback):
    """Notes the batches of a run."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(batch)


# By hand
# ---------------------------------------------------------------------------------------------


def project(delta, images, region):
    if isinstance(region, Linf):
        inside = delta.clamp(-region.radius, region.radius)
    else:
        lengths = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        inside = delta * (region.radius / lengths.clamp_min(1e-300)).clamp_max(1)
    return (images + inside).clamp(0, 1) - images


def step(gradient, region):
    if isinstance(region, Linf):
        return region.radius * gradient.sign()
    return region.radius * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def raised(net, loss):
    """Move weights of two dimensions or more up the loss; return them as they were."""
    weights = [weight for weight in net.parameters() if weight.ndim >= 2]
    gradients = torch.autograd.grad(loss, weights)
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight += GAMMA * weight.norm() * gradient / gradient.norm()
    return list(zip(weights, before, strict=True))


def free_training(run, weights, batches, formula, regions, gamma=0.0):
    """Alg. 1 of Shafahi et al. 2019, for inliers and, where there is a second region, outliers."""
    optimizer = torch.optim.SGD(weights, RATE)
    deltas = [torch.zeros_like(batches[0].images), torch.zeros_like(batches[0].outliers)]
    for batch in batches:
        clean = [batch.images, batch.outliers]
        moved = []
        for place, images in enumerate(clean):
            attacked = images
            if place < len(regions):
                attacked = images + project(deltas[place], images, regions[place])
            moved.append(attacked.detach().requires_grad_())
        kept = raised(run.net, formula(run(torch.cat(moved)), batch)) if gamma else []
        optimizer.zero_grad()
        formula(run(torch.cat(moved)), batch).backward()
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
        optimizer.step()
        for place, region in enumerate(regions):
            kept_before = moved[place].detach() - clean[place]
            ahead = kept_before + step(moved[place].grad, region)
            deltas[place] = project(ahead, clean[place], region)
    return deltas


def uniform(logits):
    return -logits.log_softmax(1).mean(1)


def with_outliers(values, weight):
    def formula(logits, batch):
        inliers = F.cross_entropy(logits[:8], batch.labels)
        return inliers + weight * values(logits[8:]).mean()

    return formula


def confidence(logits):
    return logits.softmax(1).amax(1).log()


def outlier_class(logits):
    return -logits.log_softmax(1)[:, -1]


LINF = Linf(RADIUS)
NO_START = {"random_start": False}
BY_HAND = {
    "ADV": (free(ADV), lambda z, batch: F.cross_entropy(z[:8], batch.labels), [LINF]),
    "AOE": (free(AOE), with_outliers(uniform, 0.5), [LINF]),
    "ALOE": (free(ALOE), with_outliers(uniform, 0.5), [LINF, LINF]),
    "ALOE, AWP": (
        free(ALOE, weight_perturbation=GAMMA), with_outliers(uniform, 0.5), [LINF, LINF],
    ),
    "RATIO": (
        free(RATIO, FREE_L2, outlier_attack={**FREE_L2, **NO_START, "radius": 1.0}),
        with_outliers(uniform, 1.0),
        [L2(0.5), L2(1.0)],
    ),
    "ACET": (
        free(ACET, outlier_weight=0.3, inlier_attack={**FREE, **NO_START}),
        with_outliers(confidence, 0.3),
        [LINF, LINF],
    ),
    "ATOM": (
        free(ATOM, inlier_attack={**FREE, **NO_START}),
        with_outliers(outlier_class, 1.0),
        [LINF, LINF],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_a_run_is_the_papers_algorithm(make_net, arrays, tmp_path, name):
    make, formula, regions = BY_HAND[name]
    net = make_net()
    net.drop.p = 0.0
    if name == "ATOM":
        net = OutlierClass(net).double()
    method = make(net)
    by_hand = copy.deepcopy(net).train()
    run = by_hand.joint_logits if name == "ATOM" else by_hand.forward
    seen = Seen()
    trainer = fit(method, arrays, tmp_path, seen, max_steps=6)
    assert trainer.global_step == 6
    assert [batch.replay for batch in seen.batches] == [0, 1, 2, 0, 1, 2]
    batches = [batch._replace(images=batch.images.double(), outliers=batch.outliers.double())
               for batch in seen.batches]  # fmt: skip
    if name == "ADV":
        batches = [batch._replace(outliers=batch.outliers[:0]) for batch in batches]

    def logits(images):
        return run(images)

    logits.net = by_hand
    gamma = GAMMA if "AWP" in name else 0.0
    deltas = free_training(logits, by_hand.parameters(), batches, formula, regions, gamma)
    for weight, expected in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-10, atol=1e-12)
    kept = method.replays.perturbations
    for purpose, expected in zip(("attack inliers", "attack outliers"), deltas, strict=True):
        if purpose in kept:
            torch.testing.assert_close(kept[purpose], expected, rtol=0, atol=1e-12)
            assert kept[purpose].abs().max() > 0.9 * RADIUS
    assert len(kept) == len(regions)


def test_a_step_costs_one_pass(make_net, arrays, tmp_path):
    passes = {"forward": 0, "backward": 0}

    def count(name):
        def hook(*_):
            passes[name] += 1

        return hook

    def passes_of(method):
        passes.update(forward=0, backward=0)
        fit(method, arrays, tmp_path, max_steps=6)
        return dict(passes)

    net = make_net()
    fit(free(ALOE)(net), arrays, tmp_path, max_steps=1)  # which asks the network what it takes
    net.head.register_forward_hook(count("forward"))
    net.head.register_full_backward_hook(count("backward"))
    assert passes_of(free(ALOE)(net)) == {"forward": 6, "backward": 6}
    single = {**FREE, "replays": None}
    both = {"forward": 3 * 6, "backward": 3 * 6}  # inliers and outliers apart, as in train mode
    assert passes_of(ALOE(net, single, attack_mode="train", optimization=SGD)) == both
    assert passes_of(free(ALOE, weight_perturbation=GAMMA)(net))["forward"] == 2 * 6


def test_the_loader_repeats_and_an_attack_of_its_own_goes_on(make_net, arrays, tmp_path):
    """Only one side has replays; the other side's attack starts again at each step."""
    seen = Seen()
    attacks = {"inlier_attack": FREE, "outlier_attack": PLAIN}
    method = ALOE(make_net(), attack_mode="train", optimization=SGD, **attacks)
    fit(method, arrays, tmp_path, seen, max_epochs=2)
    assert [batch.replay for batch in seen.batches] == [0, 1, 2, 0, 1, 2, 0] * 2
    assert list(method.replays.perturbations) == ["attack inliers"]
    first, again = seen.batches[1:3]
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.outliers, again.outliers)
    assert not torch.equal(again.images, seen.batches[3].images)


def test_gradients_that_are_not_finite_move_nothing(make_net, make_images):
    method = free(ADV)(make_net())
    attack = method.inlier_attack
    images = make_images(4)
    draws = torch.Generator()
    leaf = method.replays.attacked(attack, images, "attack", draws)
    leaf.grad = torch.ones_like(leaf)
    leaf.grad[0] = torch.nan
    leaf.grad[1] = torch.inf
    method.replays.move()
    moved = method.replays.perturbations["attack"]
    assert moved[:2].abs().max() == 0
    torch.testing.assert_close(moved[2:], (images[2:] + RADIUS).clamp(0, 1) - images[2:])
    other = method.replays.attacked(attack, images[:3], "attack", draws)
    assert torch.equal(other.detach(), images[:3])  # a batch of another size starts at its images


def test_a_random_start_is_that_of_the_first_batch(make_net, make_images):
    method = ADV(make_net(), FREE, attack_mode="train")
    images = make_images(4)
    start = method.replays.attacked(
        method.inlier_attack, images, "attack", torch.Generator().manual_seed(0)
    )
    expected = LINF.sample(images, torch.Generator().manual_seed(0))
    torch.testing.assert_close(start.detach(), expected)


# What is refused
# ---------------------------------------------------------------------------------------------

MISTAKES = [
    ({"replays": 4}, "replays: .* this search has 10; expected steps: 1"),
    ({"steps": 1, "replays": 1}, "replays: 1 is not a whole number >= 2"),
    ({"steps": 1, "replays": 2.5}, "replays: "),
    ({"steps": 1, "replays": True}, "replays: "),
    ({"steps": 1, "replays": 4, "start_noise": 2}, "replays: start_noise is of searches"),
    ({"steps": 1, "replays": 4, "early_steps": [[0.3, 1]]}, "replays: early_steps is of"),
    ({"steps": 1, "replays": 4, "rule": "auto"}, "replays: .*AutoPGD.* expected rule: steepest"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_mistakes_name_the_setting(settings, message):
    with pytest.raises(UserError, match=message):
        budget_of("inlier_attack", {"name": "pgd", **settings})


def test_evaluations_have_none_and_python_has_the_same():
    with pytest.raises(UserError, match="replays"):
        build(FREE)
    with pytest.raises(UserError, match="rule: steepest"):
        TrainingBudget(LINF, 1, RADIUS, rule=AutoPGD(), replays=4)
    assert budget_of("attack", FREE).replays == TrainingBudget(LINF, 1, replays=3).replays == 3
    assert budget_of("attack", {**FREE, "name": "fgsm", "steps": None}).step_size == RADIUS
    assert TrainingBudget(Unbounded(), 1, 0.1, random_start=False, replays=2).replays == 2


class Weighted(ADV):
    """A user's loss, which its attack does not climb."""

    def loss(self, inlier_logits, outlier_logits, batch):
        return super().loss(inlier_logits, outlier_logits, batch) + inlier_logits.square().mean()


REFUSED = {
    "HALO": (lambda net: HALO(net, FREE, attack_mode="train"), r"HALO .*objective, inlier_goal"),
    "EnergyMargin": (
        lambda net: EnergyMargin(net, inlier_attack=FREE, attack_mode="train"),
        r"^inlier_attack.replays: EnergyMargin .*inlier_goal",
    ),
    "safe spots": (
        lambda net: SafeSpotAware(net, FREE, PLAIN, attack_mode="train"),
        r"^spot_search.replays: SafeSpotAware .*objective",
    ),
    "a user's": (lambda net: Weighted(net, FREE, attack_mode="train"), r"Weighted .*\(loss\)"),
    "eval mode": (lambda net: ADV(net, FREE), r"^inlier_attack.replays: .* set attack_mode: train"),
    "two counts": (
        lambda net: RATIO(net, FREE, {**FREE_L2, "replays": 4}, attack_mode="train"),
        r"^outlier_attack.replays: 4 differs from the 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_methods_with_other_goals_say_why(make_net, arrays, tmp_path, name):
    make, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        fit(make(make_net()), arrays, tmp_path)
    assert "\n" not in str(caught.value)


def test_gradients_that_accumulate_are_refused(make_net, arrays, tmp_path):
    message = r"^trainer.accumulate_grad_batches: 2 .* expected 1"
    with pytest.raises(UserError, match=message):
        fit(free(ALOE)(make_net()), arrays, tmp_path, accumulate_grad_batches=2)
    later = GradientAccumulationScheduler({1: 2})
    with pytest.raises(UserError, match=message):
        fit(free(ALOE)(make_net()), arrays, tmp_path, later, max_epochs=2)


def test_a_loader_that_does_not_repeat_is_refused(make_net, arrays):
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"TrainingLoader.* this run reads a DataLoader"):
        trainer.fit(free(ADV)(make_net()), DataLoader([1, 2]))


def test_more_replays_than_an_epoch_has_steps_are_refused(make_net, arrays, tmp_path):
    method = free(ADV, {**FREE, "replays": 8})(make_net())
    with pytest.raises(UserError, match=r"replays: 8 are more than the 7 steps of an epoch"):
        fit(method, arrays, tmp_path)


# Resuming
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_resuming_within_the_replays_is_exact(make_net, arrays, tmp_path, precision):
    def run(name, resume=None):
        torch.manual_seed(1 if resume else 0)
        net = make_net(seed=3 if resume else 0, dtype=torch.float32)
        method = ALOE(net, FREE, attack_mode="train", optimization=Optimization(RATE))
        callbacks = [Checkpoints(every_n_steps=1, keep_every_n_steps=1), Averaging(0.9), Guards()]
        fit(
            method, arrays, tmp_path / name, *callbacks, resume=resume, max_epochs=2,
            precision=precision, augmentation="crop_and_flip", limit_val_batches=1.0,
        )  # fmt: skip
        return torch.load(tmp_path / name / "last.ckpt", weights_only=True)

    whole = run("whole")
    assert whole["global_step"] == 14
    for stop in (5, 7, 9):  # among a batch's replays; at the end of an epoch; within the second
        again = run(f"from {stop}", tmp_path / "whole" / f"step-{stop}.ckpt")
        for name, value in whole["state_dict"].items():
            assert torch.equal(value, again["state_dict"][name]), name
        (kept,) = whole["perturbations"]
        assert set(kept) == {"attack inliers", "attack outliers"}
        for purpose, value in kept.items():
            assert value.abs().max() > 0
            assert torch.equal(value, again["perturbations"][0][purpose])


def test_a_process_that_the_run_did_not_have_begins_anew(make_net):
    replays = free(ADV)(make_net()).replays
    checkpoint = {"perturbations": [{"attack": torch.ones(1)}, {"attack": torch.zeros(1)}]}
    for rank, count in ((1, 1), (2, 0)):
        replays.on_load_checkpoint(SimpleNamespace(global_rank=rank), None, checkpoint)
        assert len(replays.perturbations) == count


def test_another_run_begins_anew(make_net, arrays, tmp_path):
    method = free(ALOE)(make_net())
    fit(method, arrays, tmp_path, max_steps=1)
    first = method.replays.perturbations["attack inliers"]
    method.replays.perturbations = {"attack inliers": torch.ones_like(first)}
    other = free(ALOE)(make_net())
    other.net.load_state_dict(method.net.state_dict())
    for run in (method, other):
        fit(run, arrays, tmp_path, max_steps=1)
    for purpose, value in method.replays.perturbations.items():
        assert torch.equal(value, other.replays.perturbations[purpose])
