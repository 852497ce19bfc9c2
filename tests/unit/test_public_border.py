"""What the public functions refuse: images and arguments without meaning, in one clear line."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robust_ood import detectors, losses, minimize, safe_spots
from robust_ood.attacks import (
    PGD,
    attack_labels,
    attack_score,
    lower_score,
    misclassify,
    raise_score,
)
from robust_ood.attacks.suite import Suite
from robust_ood.detectors import (
    ASH,
    GEN,
    KNN,
    MSP,
    ODIN,
    PRO,
    DeepEnsemble,
    Entropy,
    KLMatching,
    Mean,
    ViM,
    surface_of,
)
from robust_ood.errors import UserError
from robust_ood.regions import Linf

REGION = Linf(8 / 255)
ATTACK = PGD(REGION, steps=1)
LABELS = torch.tensor([0, 1])


def images(value: float = 0.5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((2, 3, 6, 6), value).to(dtype)


@pytest.fixture
def net(make_net) -> nn.Module:
    return make_net(dtype=torch.float32)


BORDERS = {
    "attack_score": lambda net, x: attack_score(MSP(net), x, ATTACK, 1).images,
    "lower_score": lambda net, x: lower_score(MSP(net), x, ATTACK),
    "raise_score": lambda net, x: raise_score(MSP(net), x, ATTACK),
    "misclassify": lambda net, x: misclassify(net, x, LABELS, ATTACK),
    "attack_labels": lambda net, x: attack_labels(net, x, LABELS, ATTACK).images,
    "search": lambda net, x: safe_spots.search(net, x, 8 / 255, method="fgsm"),
    "attack": lambda net, x: safe_spots.attack(net, x, LABELS, 8 / 255, steps=1),
    "fit": lambda net, x: KNN(net, neighbours=1).fit([x]),
}
WRONG = {
    "normalised": images(-1.8),
    "pixels": images(254.0),
    "NaN": images(math.nan),
    "infinite": images(math.inf),
    "float16": images(dtype=torch.float16),
    "bfloat16": images(dtype=torch.bfloat16),
    "int64": images(1.0, torch.int64),
    "one image": images()[0],
    "flat": images().flatten(1),
    "just outside": images(1 + 1e-5),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("border", BORDERS)
def test_images_without_meaning_are_refused_at_every_border(net, border, wrong):
    with pytest.raises(UserError, match=r"^(images|loader): .*expected") as refusal:
        BORDERS[border](net, WRONG[wrong])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("border", [name for name in BORDERS if name != "fit"])
def test_rounding_outside_the_range_is_clipped(net, border):
    given = images(1 + 5e-7)
    assert given.max() > 1
    moved = BORDERS[border](net, given)
    assert moved.max() <= 1
    assert given.max() > 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda net: attack_score(MSP(net), images(), ATTACK, 0), "direction"),
        (lambda net: attack_score(MSP(net), images(), ATTACK, 5), "direction"),
        (lambda net: attack_score(MSP(net), images(), ATTACK, True), "direction"),
        (lambda net: lower_score(MSP(net), images(), ATTACK, indices=torch.rand(2)), "indices"),
        (lambda net: PGD(REGION, noise=-1.0), "noise"),
        (lambda net: PGD(REGION, noise=math.nan), "noise"),
        (lambda net: Suite({}), "on_detectors"),
        (lambda net: PRO(net), "detector"),
        (lambda net: detectors.InputNoise(net, 0.01), "detector"),
        (lambda net: detectors.Standardize(net), "detector"),
        (lambda net: Mean([net]), "detectors"),
        (lambda net: KNN(net, neighbours=2.5), "neighbours"),
        (lambda net: KNN(net, neighbours=True), "neighbours"),
        (lambda net: KNN(net, bank_size=50.5), "bank_size"),
        (lambda net: ViM(net, 1.5), "dimensions"),
        (lambda net: detectors.Residual(net, True), "dimensions"),
    ],
)
def test_arguments_without_meaning_are_refused_by_name(net, call, field):
    with pytest.raises(UserError, match=f"^{field}: "):
        call(net)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"steps": True}, "steps"),
        ({"step_size": -0.1}, "step_size"),
        ({"step_size": math.nan}, "step_size"),
    ],
)
def test_the_engine_refuses_steps_without_meaning(settings, field):
    settings = {"steps": 1, "step_size": 0.1, **settings}
    with pytest.raises(UserError, match=f"^{field}: "):
        minimize(lambda x: x.flatten(1).sum(1), images(), REGION, **settings)


def test_a_network_of_one_logit_is_refused(make_net):
    net = make_net(classes=1, dtype=torch.float32)
    for call in (
        lambda: MSP(net)(images()),
        lambda: misclassify(net, images(), torch.zeros(2, dtype=torch.long), ATTACK),
    ):
        with pytest.raises(UserError, match="one logit"):
            call()


class Masked(nn.Module):
    """A network whose logits are its head's, times a factor, with classes masked by -inf."""

    def __init__(self, factor: float = 1.0, masked: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.head = nn.Linear(12, 4, bias=False)
        generator = torch.Generator().manual_seed(0)
        self.head.weight.data = torch.randn(4, 12, generator=generator)
        mask = torch.zeros(4)
        mask[list(masked)] = -torch.inf
        self.register_buffer("mask", mask)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1) * self.factor) + self.mask


PROBABILITIES = [
    MSP,
    Entropy,
    GEN,
    KLMatching,
    ODIN,
    detectors.GradNorm,
    lambda net: PRO(Entropy(net)),
    lambda net: PRO(GEN(net)),
    lambda net: DeepEnsemble([net, Masked(masked=(0,))]),
    lambda net: DeepEnsemble([net, net], "msp"),
]


@pytest.mark.parametrize("masked", [(0,), (3,), (1, 2)])
@pytest.mark.parametrize("make", PROBABILITIES)
def test_probabilities_of_exactly_zero_give_finite_scores_and_gradients(make, masked):
    detector = make(Masked(masked=masked).eval())
    given = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    detector.fit([given])
    assert detector(given).isfinite().all()
    for surrogate in surface_of(detector).surrogates:
        leaf = given.clone().requires_grad_()
        values = surrogate(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        assert values.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("logits", [[0.0, 0, -math.inf], [-math.inf, 0, 0], [0, -math.inf, 0]])
def test_entropy_of_masked_classes(logits):
    leaf = torch.tensor([logits], requires_grad=True)
    value = losses.entropy(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    assert float(value) == pytest.approx(math.log(2))
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "make", [Entropy, GEN, KLMatching, lambda net: PRO(Entropy(net)), lambda net: PRO(GEN(net))]
)
def test_the_attack_surface_follows_the_log_odds_where_logits_are_extreme(make):
    detector = make(Masked(factor=1e4).eval())
    given = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    detector.fit([given])
    steepest = torch.zeros(5)
    for surrogate in surface_of(detector).surrogates:
        leaf = given.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(surrogate(leaf).sum(), leaf)
        steepest = steepest.maximum(gradient.flatten(1).abs().amax(1))
    assert (steepest > 0).all()


@pytest.mark.parametrize("variant", ["P", "B", "S"])
def test_shaped_features_stay_finite(variant):
    net = Masked(factor=1e36).eval()
    assert ASH(net, 50, variant)(torch.rand(5, 3, 2, 2)).isfinite().all()


@pytest.mark.parametrize("make", [*PROBABILITIES, lambda net: KNN(net, neighbours=1)])
def test_detectors_built_in_inference_mode_can_be_attacked(make):
    net = Masked().eval()
    given = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        detector = make(net).fit([given])
        state = detector.state_dict()
        loaded = make(net)
        loaded.load_state_dict(state)
        lower_score(detector, given, ATTACK)
    lower_score(detector, given, ATTACK)
    lower_score(loaded, given, ATTACK)
