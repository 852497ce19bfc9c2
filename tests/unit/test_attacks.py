"""Attacks on scores and labels: never in the wrong direction, judged by the true score, restarts,
hygiene, mistakes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust_ood import L2, Linf, Unbounded, losses, minimize
from robust_ood.attacks import PGD, build, build_all, fgsm, lower_score, misclassify, raise_score
from robust_ood.attacks.objectives import softmax
from robust_ood.detectors import (
    GEN,
    MSP,
    ODIN,
    PRO,
    Detector,
    Energy,
    Entropy,
    MaxLogit,
    surface_of,
)
from robust_ood.errors import UserError
from robust_ood.rules import AutoPGD, Optimizer, Steepest

MAKERS = {
    "msp": MSP,
    "entropy": Entropy,
    "gen": GEN,
    "maxlogit": MaxLogit,
    "energy": Energy,
    "odin": lambda net: ODIN(net, 10.0, 0.01),
    "pro-ent": lambda net: PRO(Entropy(net), 2, 0.01),
    "pro-msp": lambda net: PRO(MSP(net), 2, 0.01),
}
LOSSES = ["cross_entropy", "margin", "dlr"]


class Stairs(Detector):
    """A score without gradient (whole steps of a logit) whose stand-in points the wrong way for
    half of the images.
    """

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return (self.net(images)[:, 0] * 4).floor().float()

    def surrogate(self, images):
        wrong = torch.where(images[:, 0, 0, 0] > 0.5, -1.0, 1.0)
        return (wrong * self.net(images)[:, 0]).float()


class Detached(MSP):
    def surrogate(self, images):
        return self(images).detach()


@pytest.fixture(scope="module")
def net(make_net):
    return make_net(seed=7)


@pytest.fixture(scope="module")
def images(make_images):
    return make_images(8, seed=7)


def both(detector, images, attack, **settings):
    """Clean, lowered and raised scores."""
    with torch.no_grad():
        return (
            detector(images),
            detector(lower_score(detector, images, attack, **settings)),
            detector(raise_score(detector, images, attack, **settings)),
        )


# -------------------------------------------------------------------------------------------------- direction and truth


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("objective", ["score", "softmax"])
@pytest.mark.parametrize("region", [Linf(0.03), L2(0.3)], ids=["Linf", "L2"])
def test_scores_move_the_right_way_and_images_stay_in_the_region(
    net, images, name, objective, region
):
    detector, attack = MAKERS[name](net).double(), PGD(region, steps=4, objective=objective)
    clean, lowered, raised = both(detector, images, attack)
    assert (lowered <= clean).all()
    assert (raised >= clean).all()
    if objective == "score":
        assert (lowered < clean).all()
        assert (raised > clean).all()
    for attacked in (lower_score(detector, images, attack), raise_score(detector, images, attack)):
        assert (region.norm(attacked - images) <= region.radius + 1e-9).all()
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        assert not attacked.requires_grad


@settings(max_examples=30)
@given(
    name=st.sampled_from(sorted(MAKERS)),
    region=st.builds(
        lambda kind, radius: kind(radius), st.sampled_from([Linf, L2]), st.floats(0, 1)
    ),
    steps=st.integers(1, 3),
    restarts=st.integers(1, 2),
    random_start=st.booleans(),
    objective=st.sampled_from(["score", "softmax"]),
    rule=st.sampled_from([None, Steepest(0.9), Optimizer(torch.optim.Adam)]),
)
def test_no_setting_moves_a_score_the_wrong_way(net, images, name, region, rule, **changes):
    detector = MAKERS[name](net).double()
    attack = PGD(region, rule=rule, **changes)
    clean, lowered, raised = both(detector, images, attack)
    assert (lowered <= clean).all()
    assert (raised >= clean).all()


def test_the_true_score_decides_where_the_stand_in_is_wrong(net, images):
    detector = Stairs(net)
    misled = images[:, 0, 0, 0] > 0.5
    assert 0 < misled.sum() < len(images)
    assert not surface_of(detector).exact
    attack = PGD(Linf(0.05), steps=6, random_start=False)
    clean, lowered, raised = both(detector, images, attack)
    assert (lowered <= clean).all()
    assert (raised >= clean).all()
    assert (lowered < clean)[~misled].any()
    assert (raised > clean)[~misled].any()


def test_the_clean_image_is_kept_where_nothing_is_better(net, images):
    class Flat(Detector):
        """The score of the clean images is the least of all; its stand-in says otherwise."""

        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return (x - images).abs().amax((1, 2, 3)).gt(0).float()

        def surrogate(self, x):
            return self.net(x)[:, 0]

    attack = PGD(Linf(0.05), steps=3, restarts=2)
    assert torch.equal(lower_score(Flat(), images, attack), images)
    assert (raise_score(Flat(), images, attack) != images).flatten(1).any(1).all()


def test_a_constant_score_keeps_the_clean_images(images):
    constant = nn.Sequential(nn.Flatten(), nn.Linear(108, 3)).double()
    constant[1].weight.data.zero_()
    assert torch.equal(lower_score(MSP(constant).double(), images, PGD(Linf(0.1), steps=2)), images)


def test_softmax_objectives_are_those_of_the_aloe_paper(net, images):
    detector = ODIN(net, 1000.0, 0.01).double()
    logits = net(images)
    p = logits.softmax(1)
    (inlier,), (outlier,) = softmax(detector, 1, images), softmax(detector, -1, images)
    torch.testing.assert_close(
        inlier(images), -p.log().mean(1)
    )  # cross-entropy from the uniform distribution
    torch.testing.assert_close(
        outlier(images), -(p * p.log()).sum(1)
    )  # Shannon entropy, untempered


def test_softmax_objective_is_judged_by_the_true_score(net, images):
    detector = MaxLogit(net).double()
    attack = PGD(Linf(0.05), steps=6, step_size=0.02, objective="softmax", random_start=False)
    found = lower_score(detector, images, attack)
    trail, current = [images], images
    for _ in range(6):  # the ALOE paper's inlier attack, written out
        leaf = current.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(-nn.functional.log_softmax(net(leaf), 1).mean(), leaf)
        current = torch.clamp(
            current - attack.step_size * gradient.sign(), images - 0.05, images + 0.05
        ).clamp(0, 1)
        trail.append(current)
    scores = torch.stack([detector(x) for x in trail])
    torch.testing.assert_close(detector(found), scores.amin(0), rtol=0, atol=1e-9)
    assert (scores.argmin(0) < 6).any()  # the last iterate is not always the worst


def test_a_detector_without_classifier_has_no_softmax_objective(images):
    class Brightness(Detector):
        def forward(self, x):
            return x.mean((1, 2, 3))

    with pytest.raises(UserError, match="objective: Brightness reads no classifier"):
        lower_score(Brightness(), images, PGD(Linf(0.1), objective="softmax"))
    torch.testing.assert_close(
        lower_score(Brightness(), images, PGD(Linf(0.1))), (images - 0.1).clamp(min=0)
    )


# ---------------------------------------------------------------------------------------------- restarts and randomness


@pytest.mark.parametrize("name", ["msp", "pro-ent"])
@pytest.mark.parametrize("attack_score", [lower_score, raise_score])
def test_more_restarts_are_never_weaker(net, images, name, attack_score):
    detector, sign = MAKERS[name](net).double(), 1 if attack_score is lower_score else -1
    values = [
        sign
        * detector(
            attack_score(detector, images, PGD(Linf(0.1), steps=2, restarts=restarts, seed=3))
        )
        for restarts in (1, 2, 4)
    ]
    assert (values[1] <= values[0]).all()
    assert (values[2] <= values[1]).all()
    assert (values[2] < values[0]).any()


def test_restarts_choose_image_by_image(net, images):
    detector = MSP(net).double()

    def candidates(restarts):
        attack = PGD(Linf(0.1), steps=2, restarts=restarts)
        return [found.images for found in attack.on_score(detector, images, 1, torch.arange(8))]

    assert all(torch.equal(a, b) for a, b in zip(candidates(1), candidates(3), strict=False))
    scores = torch.stack([detector(x) for x in candidates(6)])
    assert len(set(scores.argmin(0).tolist())) > 1
    found = lower_score(detector, images, PGD(Linf(0.1), steps=2, restarts=6))
    torch.testing.assert_close(detector(found), scores.amin(0))


@settings(max_examples=15)
@given(st.permutations(range(8)), st.integers(1, 7))
def test_an_image_s_attack_follows_its_index_and_not_its_batch(net, images, order, cut):
    indices, labels = torch.arange(100, 108), torch.arange(8) % 4
    attack, order = PGD(L2(0.4), steps=2, restarts=2), torch.tensor(order)
    detector = MSP(net).double()
    whole = lower_score(detector, images, attack, indices=indices)
    wrong = misclassify(net, images, labels, attack, indices=indices)
    for part in (order[:cut], order[cut:]):
        alone = lower_score(detector, images[part], attack, indices=indices[part])
        torch.testing.assert_close(alone, whole[part], rtol=0, atol=1e-9)
        alone = misclassify(net, images[part], labels[part], attack, indices=indices[part])
        torch.testing.assert_close(alone, wrong[part], rtol=0, atol=1e-9)


def test_seed_and_index_decide_the_start(net, images):
    detector, still = MSP(net).double(), {"steps": 1, "step_size": 0.0}
    first = lower_score(detector, images, PGD(Linf(0.1), **still))
    torch.manual_seed(123)
    assert torch.equal(lower_score(detector, images, PGD(Linf(0.1), **still)), first)
    assert torch.equal(
        lower_score(detector, images, PGD(Linf(0.1), **still), indices=torch.arange(8)), first
    )
    assert not torch.equal(lower_score(detector, images, PGD(Linf(0.1), seed=1, **still)), first)
    assert not torch.equal(
        lower_score(detector, images, PGD(Linf(0.1), **still), indices=torch.arange(1, 9)), first
    )


def test_starts_are_random_only_where_asked(net, images):
    for random_start in (False, True):
        attack = PGD(Linf(0.1), steps=1, step_size=0.0, random_start=random_start)
        (candidate,) = attack.on_score(MSP(net).double(), images, 1, torch.arange(8))
        assert torch.equal(candidate.images, images) is not random_start


# -------------------------------------------------------------------------------------------------------------- hygiene


@pytest.mark.parametrize("fails", [False, True])
def test_networks_are_left_as_they_were(make_net, images, fails):
    net = make_net(seed=7).train()
    net.norm.eval()
    net.conv.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    flags = [part.training for part in net.modules()]
    buffers = {name: value.clone() for name, value in net.state_dict().items()}
    seen = []

    def spy(module, inputs, output):
        seen.append({part.training for part in net.modules()})
        if fails and len(seen) == 4:
            raise RuntimeError("broken network")

    handle = net.register_forward_hook(spy)
    for attack in (
        lambda: lower_score(PRO(MSP(net)).double(), images, PGD(Linf(0.1), steps=2)),
        lambda: misclassify(net, images, torch.zeros(8, dtype=torch.long), PGD(Linf(0.1), steps=2)),
    ):
        if fails:
            seen.clear()
            with pytest.raises(RuntimeError, match="broken network"):
                attack()
        else:
            attack()
    handle.remove()
    assert seen
    assert all(modes == {False} for modes in seen)  # attacked in eval mode
    assert [part.training for part in net.modules()] == flags
    assert not net.conv.weight.requires_grad
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert net.conv.weight.grad is None
    assert net.head.bias.grad is None
    assert all(torch.equal(value, buffers[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["msp", "odin", "pro-ent"])
def test_attacks_work_where_gradients_are_off(net, images, name):
    detector, attack, labels = (
        MAKERS[name](net).double(),
        PGD(Linf(0.05), steps=2),
        torch.arange(8) % 4,
    )
    expected = lower_score(detector, images, attack), misclassify(net, images, labels, attack)
    with torch.no_grad():
        assert torch.equal(lower_score(detector, images, attack), expected[0])
    with (
        torch.inference_mode()
    ):  # batches in Lightning's validation are inference tensors, labels included
        assert torch.equal(lower_score(detector, images.clone(), attack), expected[0])
        for loss in LOSSES:
            misclassify(net, images.clone(), labels.clone(), replace(attack, loss=loss))
        assert torch.equal(misclassify(net, images.clone(), labels.clone(), attack), expected[1])


def test_bfloat16_autocast(make_net, make_images):
    net, images = make_net(seed=7, dtype=torch.float32), make_images(8, seed=7, dtype=torch.float32)
    for name, make in MAKERS.items():
        with torch.autocast("cpu", torch.bfloat16):
            clean, lowered, raised = both(make(net), images, PGD(Linf(0.05), steps=3))
        assert clean.dtype == torch.float32, name
        assert (lowered <= clean).all()
        assert (raised >= clean).all()
        assert (lowered < clean).float().mean() > 0.7
        assert (raised > clean).float().mean() > 0.7


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_batch_stays_empty(net, images, name):
    detector = MAKERS[name](net).double()
    assert lower_score(detector, images[:0], PGD(L2(0.1), steps=1)).shape == (0, 3, 6, 6)
    assert raise_score(detector, images[:0], PGD(Linf(0.1), steps=1)).shape == (0, 3, 6, 6)


# ---------------------------------------------------------------------------------------------------- on the classifier


@pytest.mark.parametrize("loss", LOSSES)
def test_misclassify_lowers_the_margin_and_the_accuracy(trained, loss):
    net, inliers, labels, _ = trained
    attack = PGD(Linf(0.1), steps=10, loss=loss)
    found = misclassify(net, inliers, labels, attack)
    before, after = losses.margin(net(inliers), labels), losses.margin(net(found), labels)
    assert (after <= before).all()
    assert (before > 0).float().mean() > 0.8
    assert (after > 0).float().mean() < 0.3
    assert (found - inliers).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_misclassified_images_that_cannot_get_worse_stay(net, images, loss):
    labels = net(images).argmin(1)
    found = misclassify(net, images, labels, PGD(Linf(0.0), steps=2, loss=loss))
    assert torch.equal(found, images)


def test_dlr_needs_three_classes(make_net, images):
    with pytest.raises(UserError, match="DLR needs at least 3 classes"):
        misclassify(
            make_net(classes=2),
            images,
            torch.zeros(8, dtype=torch.long),
            PGD(Linf(0.1), loss="dlr"),
        )


# ------------------------------------------------------------------------------------------------------------- settings


def test_default_step_size_reaches_the_boundary():
    assert PGD(Linf(8 / 255), steps=10).step_size == 8 / 255
    assert PGD(Linf(8 / 255), steps=10, rule=AutoPGD()).step_size == pytest.approx(2 / 255)
    assert PGD(Linf(8 / 255), step_size="2/255").step_size == 2 / 255
    assert fgsm(L2(0.5)).step_size == 0.5


@pytest.mark.parametrize(
    "rule", [Steepest(0.9), Optimizer(torch.optim.Adam)], ids=["momentum", "Adam"]
)
def test_the_step_rule_is_the_engine_s(net, images, rule):
    detector, region = Energy(net).double(), L2(0.3)
    (candidate,) = PGD(region, steps=5, step_size=0.05, random_start=False, rule=rule).on_score(
        detector, images, 1, torch.arange(8)
    )
    expected = minimize(detector, images, region, steps=5, step_size=0.05, rule=rule).images
    assert torch.equal(candidate.images, expected)
    assert not torch.allclose(
        candidate.images, minimize(detector, images, region, steps=5, step_size=0.05).images
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(Linf(0.1), steps=0), "steps: 0"),
        (lambda: PGD(Linf(0.1), steps=-1), "steps: -1"),
        (lambda: PGD(Linf(0.1), steps=2.5), "steps: expected a whole number or 'aloe', got 2.5"),
        (lambda: PGD(Linf(0.1), restarts=0), "restarts: 0"),
        (lambda: PGD(Linf(0.1), step_size=-0.1), "step_size: -0.1"),
        (lambda: PGD(Linf(0.1), step_size="1/0"), "step_size: '1/0'"),
        (lambda: PGD(Linf(0.1), step_size=math.nan), "step_size: expected a number .*, got nan"),
        (lambda: PGD(Linf(-0.1)), "^radius: -0.1"),
        (lambda: PGD(L2("8/0")), "^radius: '8/0'"),
        (lambda: PGD(Unbounded()), "step_size: an Unbounded region"),
        (lambda: fgsm(Unbounded()), "step_size: inf"),
        (
            lambda: PGD(Linf(0.1), objective="sofmax"),
            r"objective: expected one of .*, got 'sofmax'; did you mean 'softmax'\?",
        ),
        (lambda: build("pdg"), r"attacks: unknown name 'pdg'; did you mean 'pgd'\?"),
        (lambda: build("fgms"), r"did you mean 'fgsm'\?"),
        (
            lambda: build("pgd", norm="Linv"),
            r"attacks.pgd.norm: unknown name 'Linv'; did you mean 'Linf'\?",
        ),
        (lambda: build("pgd", radius="8/0"), "radius: '8/0'"),
        (lambda: build("pgd", radius=-1), "radius: -1"),
        (lambda: build("pgd", stps=3), r"attacks.pgd.stps: no such setting"),
        (lambda: build("fgsm", steps=3), r"attacks.fgsm.steps: no such setting"),
        (lambda: build_all([{"steps": 3}]), "attacks: .* has no 'name'"),
        (lambda: build_all(["pgd", {"name": "pgd", "steps": 3}]), "attacks: 'pgd' is duplicated"),
    ],
)
def test_mistakes_are_named_in_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_mistakes_met_while_attacking(net, images):
    labels, attack = torch.zeros(8, dtype=torch.long), PGD(Linf(0.1), steps=1)
    with pytest.raises(
        UserError,
        match=r"loss: expected one of .*, got 'cross-entropy'; did you mean 'cross_entropy'\?",
    ):
        misclassify(net, images, labels, replace(attack, loss="cross-entropy"))
    with pytest.raises(UserError, match=r"objective: .*no gradient.*differentiable surrogate"):
        lower_score(Detached(net).double(), images, attack)
    for indices in (torch.tensor([3]), torch.arange(9), torch.arange(8)[None]):
        with pytest.raises(UserError, match=r"indices: shape .* for 8 images"):
            lower_score(MSP(net).double(), images, attack, indices=indices)
    with pytest.raises(UserError, match="random_start"):
        lower_score(MSP(net).double(), images, PGD(Unbounded(), step_size=0.1))


def test_names_build_what_they_say():
    attacks = build_all(
        [
            {"name": "pgd", "radius": "8/255", "steps": 20, "restarts": 2},
            {"name": "pgd-softmax", "norm": "L2", "radius": 0.5, "label": "paper"},
            "fgsm",
        ]
    )
    assert list(attacks) == ["pgd-8/255", "paper", "fgsm"]
    assert attacks["pgd-8/255"] == PGD(Linf(8 / 255), steps=20, restarts=2)
    assert attacks["paper"] == PGD(L2(0.5), objective="softmax")
    assert attacks["fgsm"] == fgsm(Linf("8/255"))
