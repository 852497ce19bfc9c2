"""The learning rate's course against torch's own schedulers; precision and compilation of a
training step.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler

from robust_ood import Linf
from robust_ood.attacks import PGD, fgsm
from robust_ood.data import Batch
from robust_ood.randomness import generator
from robust_ood.training import ADV, ALOE, AOE, OE, SGD, SafeSpotAware, Standard

STEPS = 40
RADIUS = 8 / 255
ATTACK = PGD(Linf(RADIUS), steps=2, step_size=RADIUS / 2)


def rates(settings: SGD) -> list[float]:
    """Return the learning rate of each step of a run."""
    configured = settings.configure(torch.nn.Linear(1, 1), STEPS)
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]
    assert schedule["interval"] == "step"
    seen = []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return seen


def torchs(make) -> list[float]:
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.2)
    scheduler, seen = make(optimizer), []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_is_torchs():
    expected = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.01))
    assert rates(SGD(0.2, final_learning_rate=0.01)) == pytest.approx(expected, rel=1e-9)


def test_milestones_are_torchs():
    expected = torchs(
        lambda o: lr_scheduler.MultiStepLR(o, [STEPS // 2, STEPS * 3 // 4], gamma=0.1)
    )
    assert rates(SGD(0.2, schedule="milestones", decay=0.1)) == pytest.approx(expected, rel=1e-9)


def test_one_cycle_climbs_and_falls_in_straight_lines():
    expected = np.interp(np.arange(STEPS), [0, 0.25 * STEPS, STEPS], [0.01, 0.2, 0.01])
    found = rates(SGD(0.2, schedule="one_cycle", warmup=0.25, final_learning_rate=0.01))
    assert found == pytest.approx(list(expected), rel=1e-9)


def test_constant_stays():
    assert rates(SGD(0.2, schedule="constant")) == [0.2] * STEPS


def test_a_run_of_no_steps_has_a_schedule():
    optimizer = SGD(0.2).configure(torch.nn.Linear(1, 1), 0)["optimizer"]
    assert optimizer.param_groups[0]["lr"] == 0.2


METHODS = {
    "ALOE": lambda net: ALOE(net, ATTACK, ATTACK),
    "S-FGSM+ADV": lambda net: SafeSpotAware(net, fgsm(Linf(RADIUS)), ATTACK),
    "safe spots, outliers": lambda net: SafeSpotAware(net, fgsm(Linf(RADIUS)), ATTACK, 0.5, 0.1),
}


def descend(method, batches, precision=None) -> list[float]:
    """Take a few optimiser steps and return the loss before each."""
    optimizer, values = torch.optim.SGD(method.net.parameters(), lr=0.05), []
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
            loss = method.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@pytest.fixture
def batches(make_images):
    labels = torch.arange(24) % 4
    return [
        Batch(make_images(24, step, 8, torch.float32), labels, make_images(16, 9 + step, 8, torch.float32),
              torch.arange(24), 0, step)
        for step in range(3)
    ]  # fmt: skip


def loop_losses(net, batches, inside, exposed, outside) -> list[float]:
    """Return the losses of the same steps in a loop that is written out, with two attack batches
    and no shortcut.

    Random starts are the only draws that it takes from the package.
    """
    optimizer, values = torch.optim.SGD(net.parameters(), lr=0.05), []
    for batch in batches:
        sides = [
            (batch.images, lambda z, y=batch.labels: F.cross_entropy(z, y, reduction="sum"), inside)
        ]
        if exposed:
            sides.append((batch.outliers, lambda z: -z.log_softmax(1).mean(1).sum(), outside))
        purpose = "attack both" if outside else "attack inliers"
        count = sum(len(clean) for clean, _, attacked in sides if attacked)
        draws = generator(0, purpose, batch.epoch, batch.step, 0)
        noise = torch.rand((count, *batch.images.shape[1:]), generator=draws) * 2 - 1
        parts = []
        for clean, loss, attacked in sides:
            moved = clean
            if attacked:
                net.eval()
                moved, noise = (
                    (clean + RADIUS * noise[: len(clean)]).clamp(0, 1),
                    noise[len(clean) :],
                )
                for _ in range(STARTED.steps):
                    moved.requires_grad_()
                    (gradient,) = torch.autograd.grad(loss(net(moved)), moved)
                    moved = (moved.detach() + STARTED.step_size * gradient.sign()).clamp(
                        clean - RADIUS, clean + RADIUS
                    )
                    moved = moved.clamp(0, 1)
                net.train()
            parts.append(moved)
        logits = net(torch.cat(parts))
        loss = F.cross_entropy(logits[: len(batch.images)], batch.labels)
        if exposed:
            loss = loss - 0.5 * logits[len(batch.images) :].log_softmax(1).mean(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


STARTED = PGD(Linf(RADIUS), steps=3, step_size=RADIUS / 2)
WRITTEN_OUT = {
    "Standard": (lambda net: Standard(net), (False, False, False)),
    "OE": (lambda net: OE(net), (False, True, False)),
    "ADV": (lambda net: ADV(net, STARTED), (True, False, False)),
    "AOE": (lambda net: AOE(net, STARTED), (True, True, False)),
    "ALOE": (lambda net: ALOE(net, STARTED, STARTED), (True, True, True)),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_seeded_losses_are_those_of_a_loop_written_out(make_net, batches, name):
    """Whatever makes training faster must leave the losses of its steps where they are."""
    make, parts = WRITTEN_OUT[name]
    net = make_net(dtype=torch.float64).train()
    batches = [
        one._replace(images=one.images.double(), outliers=one.outliers.double()) for one in batches
    ]
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = copy.deepcopy(net)
    assert descend(make(net), batches) == pytest.approx(
        loop_losses(reference, batches, *parts), rel=1e-6
    )


def test_an_attack_costs_a_pass_a_step_of_both_batches_in_channels_last(make_net, batches):
    """No forward pass to see where the attack ended, and no copy between the attack's and the
    network's layout.
    """
    net = make_net(dtype=torch.float32).train()
    seen = []

    def see(module, given):
        last = given[0].is_contiguous(memory_format=torch.channels_last)
        seen.append((len(given[0]), last, {part.training for part in net.modules()}))

    net.register_forward_pre_hook(see)
    ALOE(net, STARTED, STARTED).training_step(batches[0], 0)
    assert seen == [*[(40, True, {False})] * STARTED.steps, (40, True, {True})]


@pytest.mark.parametrize("name", METHODS)
def test_first_steps_in_bfloat16_are_those_in_float32(make_net, batches, name):
    full = descend(METHODS[name](make_net(dtype=torch.float32).train()), batches)
    half = descend(METHODS[name](make_net(dtype=torch.float32).train()), batches, torch.bfloat16)
    assert half == pytest.approx(full, rel=0.03)
    assert half != full


def test_an_attack_in_float16_finds_gradients_that_float16_cannot_hold(make_net, batches):
    """A sure network's input gradients are below float16's smallest number unless the objective is
    scaled.
    """
    net = make_net(dtype=torch.float32)
    batch = batches[0]
    with torch.no_grad():
        net.head.weight.mul_(1e-6)
        net.head.bias.zero_()
    attack = PGD(Linf(RADIUS), steps=3, step_size=RADIUS / 3, random_start=False)
    method = ADV(net, attack)
    method.inspecting = True
    with torch.autocast("cpu", torch.float16):
        attacked, _ = method.attacked(batch)
        leaf = batch.images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(-method.inlier_goal(batch)(net.eval()(leaf)).sum(), leaf)
    assert (gradient == 0).float().mean() > 0.3  # what an unscaled objective would give
    assert method.findings["attack inliers"].zeros < 0.01
    assert (
        (attacked - batch.images).abs() > 0
    ).float().mean() > 0.8  # the others are at 0 or 1 and would leave


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_an_attack_that_is_looked_at_takes_the_same_step(make_net, batches, mode):
    states = []
    for inspecting in (False, True):
        net = make_net(dtype=torch.float32).train()
        method = ALOE(net, ATTACK, ATTACK, attack_mode=mode)
        method.inspecting = inspecting
        descend(method, batches)
        states.append(net.state_dict())
        assert bool(method.findings) == inspecting
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_a_compiled_method_takes_the_same_steps_and_attacks_a_frozen_network(
    make_net, batches, monkeypatch
):
    """`aot_eager` captures forward and backward graphs as the default backend does, without
    generating code.
    """
    plain = descend(ALOE(make_net(dtype=torch.float32).train(), ATTACK, ATTACK), batches)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    net = make_net(dtype=torch.float32).train()
    method = ALOE(net, ATTACK, ATTACK, compile=True)
    frozen = []
    run = method._run
    method.__dict__["_run"] = lambda x: (
        frozen.append(not any(p.requires_grad for p in net.parameters())),
        run(x),
    )[1]
    assert descend(method, batches) == pytest.approx(plain, rel=1e-4)
    assert frozen == [True, True, False] * 3
    assert all(parameter.requires_grad for parameter in net.parameters())
