"""What holds for the engine whatever the objective, region, start and step rule; closed forms;
precision.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust_ood import L1, L2, Linf, Unbounded, minimize
from robust_ood.errors import UserError
from robust_ood.randomness import generators
from robust_ood.rules import Optimizer, Steepest

SHAPE = (3, 4, 4)
SIZE = 48


def draw(count, seed, kind=torch.rand):
    return kind(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(images, weights):
    return (images * weights).flatten(1).sum(1)


def clean(count, seed):
    """Images with many pixels exactly at 0 and at 1."""
    return (draw(count, seed) * 1.6 - 0.3).clamp(0, 1)


def waves(seed):
    """A smooth objective with many local minima."""
    slopes, phases, weights = (draw(1, seed + k, torch.randn) for k in range(3))
    return lambda images: (
        ((8 * slopes.to(images) * images + phases.to(images)).sin() * weights.to(images))
        .flatten(1)
        .sum(1)
    )


def broken_root(images):
    """Finite, with a gradient that is NaN at one pixel (infinity times zero) and ordinary
    elsewhere.
    """
    return images.flatten(1)[:, 1:].sum(1) + (images[:, 0, 0, 0] * 0).sqrt()


OBJECTIVES = {
    "waves": waves(5),
    "NaN gradient": broken_root,
    "NaN value": lambda images: images.flatten(1).sum(1) * torch.nan,
    "infinite gradient": lambda images: (images * 1e30).flatten(1).sum(1) * 1e30,
    "tiny gradient": lambda images: waves(6)(images) * 1e-42,
    "flat": lambda images: images.flatten(1).sum(1) * 0,
}
RULES = [
    None,
    Steepest(momentum=0.75),
    Optimizer(torch.optim.Adam),
    Optimizer(torch.optim.SGD, {"momentum": 0.9}),
]
radii = st.one_of(st.sampled_from([0.0, 8 / 255, 1.0]), st.floats(0, 3))
bounded = st.builds(  # an Linf radius above 1 is refused where pixels are clipped
    lambda kind, radius, clip: kind(min(radius, 1) if kind is Linf and clip else radius, clip=clip),
    st.sampled_from([Linf, L2, L1]),
    radii,
    st.booleans(),
)
regions = st.one_of(bounded, st.builds(Unbounded, clip=st.booleans()))
runs = st.fixed_dictionaries(
    {"steps": st.integers(1, 4), "step_size": st.floats(0, 2), "rule": st.sampled_from(RULES)},
)


def start_of(region, images, seed):
    if region.radius == float("inf"):
        return images + 0.3 * draw(len(images), seed, torch.randn).to(images)
    return region.sample(images, generators(seed, "start", indices=range(len(images))))


def assert_inside(images, center, region):
    assert images.shape == center.shape
    assert images.dtype == center.dtype
    assert images.isfinite().all()
    moved = (images.double() - center.double()).flatten(1)
    assert (moved.abs().amax(1) <= region.radius + 1e-6).all() or not isinstance(region, Linf)
    assert (moved.norm(dim=1) <= region.radius * (1 + 1e-5) + 1e-6).all() or not isinstance(
        region, L2
    )
    if isinstance(region, L1):
        assert (moved.abs().sum(1) <= region.radius * (1 + 1e-5) + 1e-6).all()
    if region.clip:
        assert images.min() >= 0
        assert images.max() <= 1


@settings(max_examples=150)
@given(
    regions,
    runs,
    st.sampled_from(sorted(OBJECTIVES)),
    st.booleans(),
    st.sampled_from(["best", "last"]),
    st.integers(0, 99),
)
def test_result_is_inside_the_ball_and_the_pixel_range(region, run, name, random, keep, seed):
    images = clean(3, seed).float()
    start = start_of(region, images, seed) if random else None
    found = minimize(OBJECTIVES[name], images, region, start=start, keep=keep, **run)
    assert_inside(found.images, images, region)
    assert not found.images.requires_grad


def test_a_start_outside_is_brought_inside():
    images, region = clean(3, 0), L2(0.5)
    found = minimize(
        waves(0), images, region, steps=1, step_size=0.0, start=images + 2, keep="last"
    )
    torch.testing.assert_close(
        region.norm(found.images - images), region.norm(region.project(images + 2, images) - images)
    )
    assert_inside(found.images, images, region)


@settings(max_examples=75)
@given(regions, runs, st.booleans(), st.integers(0, 99))
def test_best_is_never_worse_than_the_start_nor_than_the_last(region, run, random, seed):
    images, objective = clean(4, seed), waves(seed)
    start = start_of(region, images, seed) if random else None
    best = minimize(objective, images, region, start=start, trace=True, **run)
    last = minimize(objective, images, region, start=start, keep="last", **run)
    first = images if start is None else region.project(start, images)
    assert last.values is None
    assert (best.values <= objective(first)).all()
    assert (best.values <= objective(last.images)).all()
    torch.testing.assert_close(objective(best.images), best.values, rtol=0, atol=1e-12)
    assert torch.equal(best.values, best.trace.values.amin(0))


@settings(max_examples=50)
@given(regions, runs, st.integers(0, 99), st.integers(1, 5), st.permutations(range(6)))
def test_an_image_does_not_depend_on_its_batch(region, run, seed, cut, order):
    images, objective = clean(6, seed), waves(seed)
    start = start_of(region, images, seed)
    whole = minimize(objective, images, region, start=start, trace=True, **run)
    order = torch.tensor(order)
    for part in (order[:cut], order[cut:]):
        alone = minimize(objective, images[part], region, start=start[part], trace=True, **run)
        torch.testing.assert_close(alone.images, whole.images[part], rtol=0, atol=1e-9)
        torch.testing.assert_close(alone.values, whole.values[part], rtol=0, atol=1e-9)
        torch.testing.assert_close(
            alone.trace.values, whole.trace.values[:, part], rtol=0, atol=1e-9
        )


def test_a_broken_image_does_not_spoil_its_neighbours():
    images, region = clean(3, 1), L2(0.4)

    def objective(x):
        spoilt = (
            torch.tensor([1.0, torch.nan, 1.0], dtype=x.dtype)[: len(x)] if len(x) == 3 else 1.0
        )
        return waves(1)(x) * spoilt

    together = minimize(objective, images, region, steps=5, step_size=0.1)
    alone = minimize(waves(1), images[[0, 2]], region, steps=5, step_size=0.1)
    torch.testing.assert_close(together.images[[0, 2]], alone.images)
    assert torch.equal(together.images[1], images[1])


# ---------------------------------------------------------------------------------------------------------- hygiene


def mixed(net):
    """Give every kind of flag and gradient to parts of a network."""
    net.train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    net.head.weight.grad = torch.full_like(net.head.weight, 7.0)
    return net


def snapshot(net):
    flags = {name: part.training for name, part in net.named_modules()}
    grads = {
        n: (p.requires_grad, None if p.grad is None else p.grad.clone())
        for n, p in net.named_parameters()
    }
    return flags, grads, {name: value.clone() for name, value in net.state_dict().items()}


def assert_untouched(before, after):
    assert before[0] == after[0]
    for name, (needs, grad) in before[1].items():
        assert after[1][name][0] == needs
        assert (grad is None) == (after[1][name][1] is None), name
        assert grad is None or torch.equal(grad, after[1][name][1])
    assert all(torch.equal(value, after[2][name]) for name, value in before[2].items())


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_flags_modes_and_buffers_are_untouched(make_net, make_images, fails):
    net = mixed(make_net())
    before, images, calls = snapshot(net), make_images(), []

    def objective(x):
        calls.append(torch.is_grad_enabled())
        if fails and len(calls) == 2:
            raise RuntimeError("broken objective")
        return net(x)[:, 0]

    with (
        pytest.raises(RuntimeError, match="broken objective") if fails else contextlib.nullcontext()
    ):
        minimize(objective, images, Linf(0.1), steps=3, step_size=0.05)
    assert_untouched(before, snapshot(net))
    assert calls == (
        [True, True] if fails else [True, True, True, False]
    )  # the last value needs no gradient
    assert torch.is_grad_enabled()
    assert torch.equal(images, make_images())
    assert not images.requires_grad


def test_one_gradient_a_step_and_no_forward_pass_more_than_needed(make_images):
    for keep, trace, passes in (("best", False, 4), ("last", False, 3), ("last", True, 4)):
        calls = []
        minimize(
            lambda x, calls=calls: (calls.append(1), x.flatten(1).sum(1))[1],
            make_images(),
            Linf(0.1),
            steps=3,
            step_size=0.05,
            keep=keep,
            trace=trace,
        )
        assert len(calls) == passes


def test_no_random_number_is_drawn(make_net, make_images):
    state = torch.get_rng_state()
    net = make_net()
    minimize(lambda x: net(x)[:, 0], make_images(), L2(0.3), steps=3, step_size=0.1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(make_net, make_images, around):
    net, images, region = make_net(), make_images(), Linf(0.1)
    net.requires_grad_(False)
    run = {"steps": 3, "step_size": 0.05, "start": images + 0.01}
    expected = minimize(lambda x: net(x)[:, 0], images, region, **run)
    with around():
        run["start"] = images + 0.01
        found = minimize(lambda x: net(x)[:, 0], images, region, **run)
        own = minimize(
            lambda x: net(x)[:, 0], images.clone(), region, **run
        )  # an inference tensor of its own
        assert torch.is_grad_enabled() is False
        assert torch.is_inference_mode_enabled() is (around is torch.inference_mode)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(own.images, expected.images)
    assert not found.images.is_inference()


def test_images_made_under_inference_mode_can_be_attacked_outside_it(make_net, make_images):
    net, images = make_net(), make_images()
    with torch.inference_mode():
        inference = images.clone()
    assert inference.is_inference()
    run = {"steps": 3, "step_size": 0.05}
    found = minimize(lambda x: net(x)[:, 0], inference, Linf(0.1), start=inference, **run)
    assert torch.equal(
        found.images, minimize(lambda x: net(x)[:, 0], images, Linf(0.1), **run).images
    )


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.repeat(1, 1, 2, 2)[:, :, : x.shape[2], : x.shape[3]],
        lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["channels_last", "slice", "permuted", "transposed"],
)
def test_memory_layout_does_not_matter(make_net, make_images, view, rule):
    net, images = make_net(), make_images()
    viewed = view(images)
    assert not viewed.is_contiguous()
    for region in (Linf(0.1), L2(0.5), Unbounded()):
        run = {"steps": 4, "step_size": 0.03, "rule": rule, "trace": True}
        expected = minimize(lambda x: net(x)[:, 0], images, region, **run)
        found = minimize(lambda x: net(x)[:, 0], viewed, region, **run)
        torch.testing.assert_close(found.images, expected.images, rtol=0, atol=1e-9)
        torch.testing.assert_close(found.trace, expected.trace, rtol=0, atol=1e-9)


def test_one_image_repeated_by_expand_is_not_written_to():
    image = clean(1, 3)
    kept = image.clone()
    found = minimize(
        waves(3), image.expand(4, -1, -1, -1), L2(0.5), steps=3, step_size=0.2, rule=RULES[1]
    )
    assert torch.equal(image, kept)
    torch.testing.assert_close(found.images, found.images[:1].expand(4, -1, -1, -1))


# --------------------------------------------------------------------------------------------------------- precision


def test_bfloat16_autocast_descends_and_leaves_training_gradients_as_without_it(
    make_net, make_images
):
    net, images = make_net(dtype=torch.float32), make_images(dtype=torch.float32)

    def objective(x):
        return F.log_softmax(net(x).float(), dim=1)[:, 0]

    def training_gradients(attack):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            if attack:  # the judge's forward pass without gradient must not leave detached weights in autocast's cache
                judge = {"judge": objective} if attack == "judged" else {}
                found = minimize(objective, images, Linf(0.1), steps=4, step_size=0.03, **judge)
                assert_inside(found.images, images, Linf(0.1))
                assert (found.values < objective(images)).all()
            net(images).float().square().sum().backward()
        return [parameter.grad.clone() for parameter in net.parameters()]

    plain = training_gradients(None)
    assert all(grad.abs().sum() > 0 for grad in plain)
    for attack in ("plain", "judged"):
        for grad, expected in zip(training_gradients(attack), plain, strict=True):
            assert torch.equal(grad, expected)


def test_bfloat16_autocast_inside_inference_mode(make_net, make_images):
    net, images = make_net(dtype=torch.float32), make_images(dtype=torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        before = net(images)[:, 0].float()  # puts weights into autocast's cache first
        found = minimize(lambda x: net(x)[:, 0].float(), images, Linf(0.1), steps=4, step_size=0.03)
    assert (found.values < before).all()


@pytest.fixture
def half_line():
    """A linear function computed in float16 under autocast: `(function, its gradient)`, entries in
    0.5..1.
    """
    layer = nn.Linear(SIZE, 1, bias=False)
    signs = draw(1, 1, torch.randn).sign()
    weights = (signs * (0.5 + 0.5 * draw(1, 2))).float()
    layer.weight.data = weights.view(1, SIZE)
    return lambda x: layer(x.flatten(1))[:, 0], weights


def test_float16_gradients_do_not_underflow_to_steps_of_zero(half_line):
    line, weights = half_line
    images = clean(3, 0).float() * 0.5 + 0.25
    with torch.autocast("cpu", torch.float16):
        leaf = images.clone().requires_grad_()
        assert line(leaf).dtype == torch.float16
        (unscaled,) = torch.autograd.grad((line(leaf).float() * 1e-8).sum(), leaf)
        assert unscaled.count_nonzero() == 0  # what would happen without scaling
        for region in (Linf(0.1), L2(0.1)):
            found = minimize(
                lambda x: line(x).float() * 1e-8,
                images,
                region,
                steps=1,
                step_size=0.1,
                keep="last",
            )
            expected = images - 0.1 * region.steepest(weights)
            torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-3)


def test_float16_scaling_is_undone_before_the_step(half_line):
    line, weights = half_line
    images = clean(3, 0).float()
    with torch.autocast("cpu", torch.float16):
        found = minimize(
            lambda x: line(x).float(),
            images,
            Unbounded(clip=False),
            steps=4,
            step_size=0.01,
            rule=Optimizer(torch.optim.SGD),
            keep="last",
        )
    torch.testing.assert_close(found.images, images - 0.04 * weights, rtol=0, atol=1e-4)


def test_tiny_float16_weights_still_give_sign_steps():
    layer = nn.Linear(SIZE, 1, bias=False)
    nn.init.constant_(layer.weight, 1e-6)
    images = clean(2, 0).float() * 0.5 + 0.25
    with torch.autocast("cpu", torch.float16):
        found = minimize(
            lambda x: layer(x.flatten(1))[:, 0].float() * 1e-3,
            images,
            Linf(0.1),
            steps=3,
            step_size=0.02,
            keep="last",
        )
    torch.testing.assert_close(found.images, images - 0.06)


def test_float16_overflow_recovers_image_by_image_and_is_not_repeated(half_line):
    line, _ = half_line
    images = clean(2, 0).float()
    factors = torch.tensor(
        [1e4, 1e-8]
    )  # one image's gradient overflows where the other's underflows
    with torch.autocast("cpu", torch.float16):
        found = minimize(
            lambda x: line(x).float() * factors[: len(x)],
            images,
            Linf(10, clip=False),
            steps=30,
            step_size=0.02,
            trace=True,
        )
    taken = found.trace.linf.diff(dim=0) > 0.01  # (steps, N): whether the step moved the image
    assert taken[:, 1].all()
    assert not taken[0, 0]
    assert taken[3:, 0].sum() >= 25  # after the first overflows hardly any step is lost
    assert found.images.isfinite().all()


def test_float16_gradients_that_are_never_finite_leave_finite_images(half_line):
    line, _ = half_line
    images = clean(2, 0).float()
    with torch.autocast("cpu", torch.float16):
        found = minimize(
            lambda x: line(x).float() + (x[:, 0, 0, 0] * 0).sqrt(),
            images,
            L2(0.5),
            steps=60,
            step_size=0.1,
            keep="last",
        )
    assert_inside(found.images, images, L2(0.5))


def test_values_wider_than_the_images_are_not_rounded():
    images = clean(64, 0).float()
    found = minimize(
        lambda x: waves(0)(x.double()) * 1e-9 + 1,
        images,
        Linf(0.1),
        steps=6,
        step_size=0.02,
        trace=True,
    )
    assert found.values.dtype == torch.float64
    assert torch.equal(found.values, found.trace.values.amin(0))


# ------------------------------------------------------------------------------------------------- judge, trace, rules


def test_the_judge_chooses_among_the_iterates():
    images = torch.full((2, *SHAPE), 0.5, dtype=torch.float64)
    wanted = torch.tensor([0.44, 0.475], dtype=torch.float64)
    graded = []

    def judge(x):
        graded.append(torch.is_grad_enabled() or x.requires_grad)
        return (x.mean((1, 2, 3)) - wanted).abs()

    found = minimize(
        lambda x: x.flatten(1).sum(1), images, Linf(0.1), steps=8, step_size=0.01, judge=judge
    )
    nearest = torch.tensor([0.0, 0.005], dtype=torch.float64)  # iterates lie on a grid of 0.01
    torch.testing.assert_close(found.values, nearest, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        (found.images.mean((1, 2, 3)) - wanted).abs(), nearest, rtol=0, atol=1e-9
    )
    assert graded == [False] * 9  # start and 8 steps, never with gradient


def test_an_objective_that_judges_itself_needs_no_judge(make_net, make_images):
    net, images = make_net(), make_images()
    labels = torch.arange(len(images)) % 4
    passes = []

    def both(x):
        passes.append(len(x))
        logits = net(x)
        return -F.cross_entropy(logits, labels, reduction="none"), logits[:, 0]

    settings = {"steps": 5, "step_size": 0.02}
    found = minimize(both, images, Linf(0.1), **settings)
    assert len(passes) == 6  # no forward pass of the judge's own
    apart = minimize(
        lambda x: both(x)[0], images, Linf(0.1), judge=lambda x: both(x)[1], **settings
    )
    assert torch.equal(found.images, apart.images)
    assert torch.equal(found.values, apart.values)


def test_the_last_iterate_is_there_whatever_was_kept(make_net, make_images):
    net, images = make_net(), make_images()
    best, last = (
        minimize(lambda x: net(x)[:, 0], images, Linf(0.1), steps=4, step_size=0.05, keep=keep)
        for keep in ("best", "last")
    )
    assert torch.equal(best.last, last.images)
    assert torch.equal(last.last, last.images)


def test_among_equals_the_first_is_kept():
    images = clean(3, 0)
    found = minimize(
        waves(0), images, Linf(0.1), steps=3, step_size=0.05, judge=lambda x: x.new_zeros(len(x))
    )
    assert torch.equal(found.images, images)


@pytest.mark.parametrize("signs", ["both", "one"])
def test_trace_rows_equal_hand_computation(signs):
    weights, images, region = draw(1, 1, torch.randn), clean(3, 2), Linf(0.05)
    weights = weights if signs == "both" else weights.abs()
    found = minimize(
        lambda x: dot(x, weights), images, region, steps=4, step_size=0.02, trace=True, keep="last"
    )
    current, rows = images.clone(), []
    for _ in range(5):
        moved = current - images
        rows.append(
            (
                dot(current, weights),
                moved.abs().amax((1, 2, 3)),
                moved.square().sum((1, 2, 3)).sqrt(),
            )
        )
        low, high = (images - 0.05).clamp(min=0), (images + 0.05).clamp(max=1)
        current = torch.minimum(torch.maximum(current - 0.02 * weights.sign(), low), high)
    for name, column in zip(("values", "linf", "l2"), zip(*rows, strict=True), strict=True):
        torch.testing.assert_close(getattr(found.trace, name), torch.stack(column))
    assert found.trace.linf[:, 0].tolist() == pytest.approx([0, 0.02, 0.04, 0.05, 0.05])


def test_a_nan_gradient_leaves_its_pixel_where_it_is():
    images = clean(3, 0) * 0.5 + 0.25
    for region in (Linf(0.1), L2(0.5), Unbounded()):
        found = minimize(broken_root, images, region, steps=3, step_size=0.02, keep="last")
        assert torch.equal(found.images[:, 0, 0, 0], images[:, 0, 0, 0])
        assert (found.images.flatten(1)[:, 1:] < images.flatten(1)[:, 1:]).all()


@pytest.mark.parametrize("region", [Linf(0.1), L2(0.5)], ids=["Linf", "L2"])
def test_momentum_equals_mi_fgsm_written_naively(region):
    images, objective, decay = clean(3, 4), waves(4), 0.8
    found = minimize(
        objective, images, region, steps=6, step_size=0.04, rule=Steepest(decay), keep="last"
    )
    for image, result in zip(images, found.images, strict=True):
        velocity, current = torch.zeros(SHAPE, dtype=torch.float64), image
        for _ in range(6):
            leaf = current.detach()[None].requires_grad_()
            (gradient,) = torch.autograd.grad(objective(leaf).sum(), leaf)
            velocity = decay * velocity + gradient[0] / gradient.abs().sum()
            direction = velocity.sign() if isinstance(region, Linf) else velocity / velocity.norm()
            moved = current - 0.04 * direction - image
            if isinstance(region, Linf):
                moved = moved.clamp(-0.1, 0.1)
            elif moved.norm() > 0.5:
                moved = moved / moved.norm() * 0.5
            current = (image + moved).clamp(0, 1)
        torch.testing.assert_close(result, current)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"betas": (0.8, 0.9)}),
        (torch.optim.Adamax, {}),
        (torch.optim.RMSprop, {"alpha": 0.9}),
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
    ids=["Adam", "Adamax", "RMSprop", "SGD"],
)
def test_optimizer_rule_equals_torch_optim_on_the_same_problem(kind, options):
    images, objective = clean(3, 5), waves(5)
    free = minimize(
        objective,
        images,
        Unbounded(clip=False),
        steps=12,
        step_size=0.03,
        rule=Optimizer(kind, options),
        keep="last",
    )
    boxed = minimize(
        objective,
        images,
        Linf(0.07),
        steps=12,
        step_size=0.03,
        rule=Optimizer(kind, options),
        keep="last",
    )
    for box, found in ((False, free), (True, boxed)):
        variable = images.clone().requires_grad_()
        optimizer = kind([variable], lr=0.03, **options)
        for _ in range(12):
            optimizer.zero_grad()
            objective(variable).sum().backward()
            optimizer.step()
            if box:
                with torch.no_grad():
                    variable.copy_(torch.clamp(variable, images - 0.07, images + 0.07).clamp(0, 1))
        torch.testing.assert_close(found.images, variable.detach())


def test_a_rule_forgets_between_runs():
    rule, images = Optimizer(torch.optim.SGD, {"momentum": 0.9}), clean(2, 0)
    first, second = (
        minimize(waves(0), images, Linf(0.3), steps=4, step_size=0.01, rule=rule) for _ in range(2)
    )
    assert torch.equal(first.images, second.images)


def test_a_step_size_may_differ_by_image_and_channel():
    images, weights = (
        torch.full((2, *SHAPE), 0.5, dtype=torch.float64),
        torch.ones(1, *SHAPE, dtype=torch.float64),
    )
    sizes = torch.tensor([[0.01, 0.02, 0.03], [0.04, 0.05, 0.06]], dtype=torch.float64).view(
        2, 3, 1, 1
    )
    found = minimize(lambda x: dot(x, weights), images, Unbounded(), steps=2, step_size=sizes)
    torch.testing.assert_close(found.images, images - 2 * sizes)


# -------------------------------------------------------------------------------------------------------- closed forms


@settings(max_examples=40)
@given(st.integers(0, 999), st.floats(0.001, 0.6))
def test_linear_optimum_in_the_linf_box(seed, radius):
    images, weights = clean(3, seed), draw(1, seed + 1, torch.randn)
    found = minimize(lambda x: dot(x, weights), images, Linf(radius), steps=4, step_size=radius / 3)
    expected = (images - radius * weights.sign()).clamp(0, 1)  # [0, 1] binds at many pixels
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.values, dot(expected, weights))


@settings(max_examples=40)
@given(st.integers(0, 999), st.floats(0.001, 0.2))
def test_linear_optimum_in_the_l2_ball(seed, radius):
    images, weights = clean(3, seed) * 0.5 + 0.25, draw(1, seed + 1, torch.randn)
    found = minimize(lambda x: dot(x, weights), images, L2(radius), steps=4, step_size=radius / 3)
    expected = images - radius * weights / weights.norm()
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.values, dot(images, weights) - radius * weights.norm())


def test_linear_optimum_where_the_l2_ball_meets_the_box():
    images, weights, radius = clean(8, 0), draw(1, 1, torch.randn), 1.5
    low, high = (
        torch.zeros(8, 1, 1, 1, dtype=torch.float64),
        torch.full((8, 1, 1, 1), 1e3, dtype=torch.float64),
    )
    for _ in range(100):  # the optimum is clip(x - t w) for the t that reaches the radius
        middle = (low + high) / 2
        far = ((images - middle * weights).clamp(0, 1) - images).flatten(1).norm(dim=1).view(
            -1, 1, 1, 1
        ) > radius
        low, high = torch.where(far, low, middle), torch.where(far, middle, high)
    optimum = dot((images - low * weights).clamp(0, 1), weights)
    found = minimize(
        lambda x: dot(x, weights), images, L2(radius), steps=100, step_size=2.5 * radius / 100
    )
    reached = (dot(images, weights) - found.values) / (dot(images, weights) - optimum)
    assert (reached <= 1 + 1e-9).all()
    assert (reached > 0.995).all()


@settings(max_examples=20)
@given(st.integers(0, 999))
def test_quadratic_optimum(seed):
    images, target = clean(3, seed), draw(3, seed + 1, torch.randn) * 0.3 + 0.5
    scales = draw(1, seed + 2) + 0.5
    box = minimize(
        lambda x: dot((x - target) ** 2, scales), images, Linf(0.2), steps=60, step_size=0.005
    )
    expected = target.clamp(images - 0.2, images + 0.2).clamp(0, 1)  # separable: pixel by pixel
    assert (box.images - expected).abs().max() < 0.0051

    ball = minimize(
        lambda x: (x - target).square().flatten(1).sum(1),
        images,
        L2(0.5, clip=False),
        steps=80,
        step_size=0.02,
    )
    away = target - images
    nearest = images + away * (0.5 / away.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
    assert (ball.images - nearest).flatten(1).norm(dim=1).max() < 0.03


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: 0"),
        ({"steps": -3}, "steps: -3"),
        ({"steps": 2.5}, "steps: .*2.5"),
        ({"keep": "first"}, "keep: .*'best', 'last', got 'first'"),
        ({"objective": lambda x: x.sum()}, r"objective: gave shape \(\) for 2 images"),
        ({"objective": lambda x: x.flatten(1)}, r"objective: gave shape \(2, 48\) for 2 images"),
        (
            {"objective": lambda x: x.flatten(1).sum(1).detach()},
            "objective: .*no gradient.*surrogate",
        ),
        (
            {"objective": lambda x: torch.ones(2, requires_grad=True) * 2},
            "objective: .*do not depend on the images",
        ),
    ],
    ids=["zero", "negative", "fraction", "keep", "scalar", "per pixel", "detached", "constant"],
)
def test_mistakes_are_named_in_one_line(change, message):
    call = {
        "objective": waves(0),
        "images": clean(2, 0),
        "region": Linf(0.1),
        "steps": 2,
        "step_size": 0.1,
        **change,
    }
    with pytest.raises(UserError, match=message) as caught:
        minimize(call.pop("objective"), call.pop("images"), call.pop("region"), **call)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_outside_its_range(momentum):
    with pytest.raises(UserError, match="momentum"):
        Steepest(momentum)
