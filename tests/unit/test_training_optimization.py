"""Schedules against torch's own; precision and compilation of a training step."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler

from robust_ood import Linf, training
from robust_ood.attacks import PGD, fgsm
from robust_ood.data import Batch
from robust_ood.errors import UserError
from robust_ood.randomness import generator
from robust_ood.training import ADV, ALOE, AOE, OE, Optimization, SafeSpotAware, Standard

STEPS = 40
RADIUS = 8 / 255
ATTACK = PGD(Linf(RADIUS), steps=2, step_size=RADIUS / 2)


def rates(settings: Optimization) -> list[float]:
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
    scheduler = {"name": "cosine", "eta_min": 0.01}
    assert rates(Optimization(0.2, scheduler=scheduler)) == pytest.approx(expected, rel=1e-9)


def test_milestones_are_torchs():
    expected = torchs(
        lambda o: lr_scheduler.MultiStepLR(o, [STEPS // 2, STEPS * 3 // 4], gamma=0.1)
    )
    assert rates(Optimization(0.2, scheduler="milestones")) == pytest.approx(expected, rel=1e-9)


def test_a_triangle_climbs_and_falls_in_straight_lines():
    expected = np.interp(np.arange(STEPS), [0, 0.25 * STEPS, STEPS], [0.01, 0.2, 0.01])
    scheduler = {"name": "triangle", "warmup": 0.25, "eta_min": 0.01}
    found = rates(Optimization(0.2, scheduler=scheduler))
    assert found == pytest.approx(list(expected), rel=1e-9)


def test_constant_stays():
    assert rates(Optimization(0.2, scheduler="constant")) == [0.2] * STEPS


def test_a_run_of_no_steps_has_a_schedule():
    optimizer = Optimization(0.2).configure(torch.nn.Linear(1, 1), 0)["optimizer"]
    assert optimizer.param_groups[0]["lr"] == 0.2


TORCH_SCHEDULES = {
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=STEPS),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=STEPS),
    "cosine_annealing": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "torch.optim.lr_scheduler.CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(
        o, STEPS
    ),
}


@pytest.mark.parametrize("name", TORCH_SCHEDULES)
def test_any_schedule_of_torch_is_as_long_as_the_run(name):
    assert rates(Optimization(0.2, scheduler=name)) == torchs(TORCH_SCHEDULES[name])


def test_a_length_that_is_given_counts():
    found = rates(Optimization(0.2, scheduler={"name": "cosine_annealing", "T_max": 7}))
    assert found == torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, 7))


def test_a_warmup_climbs_linearly_before_any_schedule():
    found = rates(Optimization(0.2, scheduler={"name": "cosine", "warmup": 0.25, "eta_min": 0}))
    assert found[:10] == pytest.approx([0.02 * (1 + 0.9 * step) for step in range(10)])
    falling = [0.1 * (1 + math.cos(math.pi * step / 30)) for step in range(30)]
    assert found[10:] == pytest.approx(falling)


def test_schedules_in_sequence_share_the_run():
    parts = [{"name": "linear", "total_iters": 8}, {"name": "cosine_annealing"}]
    found = rates(
        Optimization(0.2, scheduler={"name": "sequential", "schedulers": parts, "milestones": [8]})
    )
    assert found[8] == pytest.approx(0.2)
    assert found[8 + 16] == pytest.approx(0.1)  # half of the 32 steps that remain


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ({"name": "RMSprop", "momentum": 0.5}, torch.optim.RMSprop),
        ({"class_path": "torch.optim.Adam", "init_args": {"lr": "1e-2"}}, torch.optim.Adam),
    ],
)
def test_any_optimizer_of_torch(optimizer, kind):
    made = Optimization(optimizer=optimizer).configure(torch.nn.Linear(1, 1), STEPS)["optimizer"]
    assert type(made) is kind
    if kind is torch.optim.Adam:
        assert made.defaults["lr"] == 0.01


def test_biases_and_norms_go_without_weight_decay_on_request(make_net):
    net = make_net()
    optimizer = {"name": "adamw", "weight_decay": 0.05}
    (whole,) = Optimization(optimizer=optimizer).configure(net, 1)["optimizer"].param_groups
    assert (whole["weight_decay"], len(whole["params"])) == (0.05, len(list(net.parameters())))
    configured = Optimization(optimizer=optimizer, decay_all=False).configure(net, 1)
    decayed, free = configured["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.05
    assert free["weight_decay"] == 0
    assert {id(p) for p in decayed["params"]} == {id(net.conv.weight), id(net.head.weight)}
    biases = [net.conv.bias, net.head.bias, net.norm.weight, net.norm.bias]
    assert {id(p) for p in free["params"]} == {id(p) for p in biases}


def old_rate(progress, high, low, schedule, milestones, decay, warmup):
    """Return the learning rate of the class `SGD` of version 0.1, whose numbers must stay."""
    if schedule == "cosine":
        return low + (high - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "milestones":
        return float(high * decay ** sum(progress >= share for share in milestones))
    if schedule == "one_cycle":
        climbing, falling = progress / warmup, (1 - progress) / (1 - warmup)
        return low + (high - low) * min(climbing, falling)
    return high


OLD = {
    "cosine": {},
    "milestones": {"decay": 0.3, "milestones": (0.3, 0.61), "nesterov": False},
    "one_cycle": {"warmup": 0.0667, "final_learning_rate": 4e-4, "weight_decay": 5e-4},
    "constant": {"momentum": 0.0},
}


@pytest.mark.parametrize("schedule", OLD)
def test_the_old_settings_warn_and_give_the_old_weights_bit_for_bit(make_net, batches, schedule):
    high = 0.05
    settings = OLD[schedule]
    with pytest.warns(DeprecationWarning, match="optimization.schedule is deprecated"):
        optimization = training.SGD(high, schedule=schedule, **settings)
    nets = [make_net(dtype=torch.float32).train() for _ in range(2)]
    configured = optimization.configure(nets[0], len(batches))
    momentum = settings.get("momentum", 0.9)
    old = torch.optim.SGD(
        nets[1].parameters(),
        lr=high,
        momentum=momentum,
        nesterov=settings.get("nesterov", True) and momentum > 0,
        weight_decay=settings.get("weight_decay", 1e-4),
    )
    low = settings.get("final_learning_rate", 1e-6)
    others = (settings.get("milestones"), settings.get("decay"), settings.get("warmup"))

    def factor(step):
        return old_rate(min(step / len(batches), 1.0), high, low, schedule, *others) / high

    schedules = [configured["lr_scheduler"]["scheduler"], lr_scheduler.LambdaLR(old, factor)]
    for net, optimizer, scheduler in zip(
        nets, [configured["optimizer"], old], schedules, strict=True
    ):
        method = Standard(net)
        for batch in batches:
            optimizer.zero_grad()
            method.training_step(batch, 0).backward()
            optimizer.step()
            scheduler.step()
    for first, second in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(first, second)
    assert schedules[0].get_last_lr() == schedules[1].get_last_lr()


def test_the_default_gives_the_weights_of_the_old_default_bit_for_bit():
    old = [
        0.1 * (old_rate(step / STEPS, 0.1, 1e-6, "cosine", (), 0, 0) / 0.1) for step in range(STEPS)
    ]
    assert rates(Optimization()) == old
    defaults = Optimization().configure(torch.nn.Linear(1, 1), 1)["optimizer"].defaults
    expected = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
    assert {name: defaults[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamv"}, "optimization.optimizer: unknown name 'adamv'"),
        ({"optimizer": {"lrr": 1}}, "optimization.optimizer.lrr: no such setting"),
        ({"optimizer": {"lr": 1e308}}, "optimization.optimizer.lr: 1e\\+308 is more than"),
        ({"optimizer": {"name": "adamw", "lrr": 1}}, "optimization.optimizer.lrr: no such setting"),
        ({"optimizer": {"name": "adamw", "lr": "x"}}, "optimization.optimizer.lr: 'x' is not"),
        ({"optimizer": {"name": "adamw", "lr": -1}}, "Invalid learning rate: -1"),
        ({"scheduler": "step"}, "optimization.scheduler.step_size: not given"),
        ({"scheduler": {"name": "plateau", "warmup": 0.1}}, "warmup: cannot precede"),
        ({"scheduler": {"name": "cosine", "warmup": 1}}, r"warmup: 1 is not a share"),
        ({"interval": "batch"}, "interval: expected one of 'step', 'epoch', got 'batch'"),
        ({"learning_rate": 0}, "learning_rate: 0 is not > 0"),
    ],
)
def test_a_mistake_is_told_before_a_run_begins(settings, message):
    with pytest.raises(UserError, match=message):
        Optimization(**settings)


def test_settings_without_a_name_are_those_of_the_default():
    optimization = Optimization(optimizer={"lr": 0.03}, scheduler={"eta_min": 0.01})
    assert optimization.optimizer == {**Optimization().optimizer, "lr": 0.03}
    assert optimization.scheduler == {**Optimization().scheduler, "eta_min": 0.01}


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

    method = ALOE(net, STARTED, STARTED)
    method.training_step(batches[0], 0)  # the first step also tries which layout the network takes
    net.register_forward_pre_hook(see)
    method.training_step(batches[0], 0)
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
