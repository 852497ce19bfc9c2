"""Attacks differentiate in the fastest precision that keeps their strength; true scores are
float32.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robust_ood import Linf, attacks, detectors
from robust_ood.attacks import (
    PGD,
    Suite,
    Targeted,
    apgd,
    attack_labels,
    attack_score,
    fgsm,
    precision,
)
from robust_ood.attacks.precision import resolve
from robust_ood.detectors import MSP, PRO, AttackSurface, Detector, Energy, Mean
from robust_ood.errors import UserError
from robust_ood.evaluation import sanity

RADIUS = 8 / 255


def current(images):
    """The precision in which a linear layer would compute here."""
    return str(F.linear(images.new_ones(1, 1), images.new_ones(1, 1)).dtype).removeprefix("torch.")


class Watched(Energy):
    """Remembers in which precision it was scored, and in which it was differentiated."""

    def attack_surface(self):
        return AttackSurface((self.surrogate,))

    def __init__(self, net):
        super().__init__(net)
        self.scored, self.differentiated = set(), set()

    def forward(self, images):
        self.scored.add(current(images))
        return super().forward(images)

    def surrogate(self, images):
        self.differentiated.add(current(images))
        return super().surrogate(images)


class Fragile(Energy):
    def attack_surface(self):
        return replace(super().attack_surface(), needs_float32=True)


@pytest.fixture
def problem(make_net, make_images):
    return make_net(dtype=torch.float32), make_images(dtype=torch.float32)


@pytest.fixture
def native(monkeypatch):
    """A machine with bfloat16, whatever this one has."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)


@pytest.mark.usefixtures("native")
def test_auto_is_bfloat16_where_the_device_has_it_and_no_detector_needs_float32(
    problem, monkeypatch
):
    net, images = problem
    assert resolve("auto", images, MSP(net)) == resolve("auto", images, net) == "bfloat16"
    for fragile in (Fragile(net), PRO(Fragile(net)), Mean([MSP(net), Fragile(net)])):
        assert resolve("auto", images, fragile) == "float32"
        assert resolve("bfloat16", images, fragile) == "bfloat16"
    assert resolve("float32", images, MSP(net)) == "float32"
    assert (
        resolve("auto", images.double(), MSP(net))
        == resolve("bfloat16", images.double(), net)
        == "float64"
    )
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert resolve("auto", images, MSP(net)) == "float32"


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("surrounding", [torch.float16, torch.bfloat16], ids=str)
def test_an_autocast_around_the_attack_stays_in_charge(problem, surrounding):
    net, images = problem
    watched = Watched(net)
    with torch.autocast("cpu", surrounding):
        found = attack_score(watched, images, PGD(Linf(RADIUS), steps=2, precision="float32"), 1)
    name = str(surrounding).removeprefix("torch.")
    assert watched.differentiated == watched.scored == {name}
    assert found.precisions == (name,)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(Linf(RADIUS), steps=2),
        apgd(Linf(RADIUS), steps=2),
        fgsm(Linf(RADIUS)),
        Suite({"first": PGD(Linf(RADIUS), steps=2)}),
        attacks.LowResolution(PGD(Linf(RADIUS), steps=2), 3),
    ],
    ids=["pgd", "apgd", "fgsm", "suite", "low resolution"],
)
@pytest.mark.usefixtures("native")
def test_the_search_is_in_bfloat16_and_the_true_score_in_float32(problem, attack):
    net, images = problem
    watched = Watched(net)
    found = attack_score(watched, images, attack, 1)
    assert watched.differentiated == {"bfloat16"}
    assert watched.scored == {"float32"}
    assert found.precisions == ("bfloat16",)
    assert found.images.dtype == found.values.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found.values, watched(found.images), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    "attack", [PGD(Linf(RADIUS), steps=3), Targeted(apgd(Linf(RADIUS), steps=3), 2)]
)
def test_margins_of_classifiers_are_float32(problem, attack):
    net, images = problem
    with torch.no_grad():
        logits = net(images)
    labels = logits.argmax(1)
    found = attack_labels(net, images, labels, attack)
    assert found.precisions == ("bfloat16",)
    with torch.no_grad():
        torch.testing.assert_close(
            found.values,
            attacks.objectives.losses.margin(net(found.images), labels),
            rtol=0,
            atol=1e-5,
        )


def test_float64_networks_keep_their_precision(make_net, make_images):
    net, images = make_net(), make_images()
    one, other = (
        attacks.lower_score(MSP(net), images, PGD(Linf(RADIUS), steps=3, precision=name))
        for name in ("bfloat16", "float32")
    )
    assert torch.equal(one, other)


def test_float32_and_an_attack_on_a_device_without_bfloat16_are_the_same(problem, monkeypatch):
    net, images = problem
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    auto, exact = (
        attacks.lower_score(MSP(net), images, PGD(Linf(RADIUS), steps=4, precision=name))
        for name in ("auto", "float32")
    )
    assert torch.equal(auto, exact)


def test_images_come_back_in_the_layout_they_were_given_in_and_weights_stay_as_they_are(problem):
    net, images = problem
    before = [(p.stride(), p.dtype) for p in net.parameters()]
    attack = PGD(Linf(RADIUS), steps=1)
    assert attacks.lower_score(MSP(net), images, attack).is_contiguous()
    last = images.contiguous(memory_format=torch.channels_last)
    assert attacks.lower_score(MSP(net), last, attack).is_contiguous(
        memory_format=torch.channels_last
    )
    assert [(p.stride(), p.dtype) for p in net.parameters()] == before


def test_scores_of_outputs_see_float32_also_under_autocast(problem):
    net, images = problem
    seen = []

    class Reader(Energy):
        def score(self, out):
            seen.extend(
                [out.logits.dtype, out.features.dtype, *(one.dtype for one in out.maps.values())]
            )
            return super().score(out)

    reader = Reader(net)
    reader.layers = ("conv",)
    with torch.autocast("cpu", torch.bfloat16):
        reader(images)
        reader.surrogate(images)
    assert seen == [torch.float32] * 6


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match=r"precision: expected one of .*, got 'half'"):
        PGD(Linf(RADIUS), precision="half")


@pytest.mark.usefixtures("native")
def test_where_rounding_hides_progress_the_last_iterate_is_proposed_too(problem):
    """Around 512, bfloat16 has steps of 4: all iterates look alike, and the first would be kept."""
    net, images = problem

    class Shifted(Energy):
        def forward(self, images):
            return (
                F.linear(self.net(images)[:, :1], torch.ones(1, 1), torch.full((1,), 512.0))[
                    :, 0
                ].float()
                - 512
            )

        surrogate = Detector.surrogate

    rounded, exact = (
        attack_score(
            Shifted(net), images, PGD(Linf(RADIUS), steps=4, random_start=False, precision=name), 1
        )
        for name in ("bfloat16", "float32")
    )
    with torch.no_grad():
        clean = Shifted(net)(images)
    assert (rounded.values <= clean).all()
    assert (clean - rounded.values).mean() > 0.95 * (clean - exact.values).mean()


class Rounded(nn.Module):
    """A linear response around 8, where bfloat16 has steps of 1/16."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 2)
        nn.init.constant_(self.head.weight, 1 / 48)
        nn.init.constant_(self.head.bias, 7.5)

    def forward(self, images):
        return self.head(images.flatten(1))


class Parabola(detectors.Detector):
    """How near a response is to 8; a response that bfloat16 rounds to 8 has no gradient."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return -(self.net(images)[:, 0].float() - 8).square()


@pytest.mark.usefixtures("native")
def test_the_sanity_checks_notice_gradients_that_bfloat16_rounds_away():
    shift = torch.linspace(0, 1, 16).view(16, 1, 1, 1)
    inliers = (0.5 + 0.004 * shift).expand(16, 3, 4, 4)
    outliers = (0.512 + 0.004 * shift).expand(16, 3, 4, 4)
    detector = Parabola(Rounded())
    words = "bfloat16 is weaker"
    assert any(
        words in line for line in sanity.check(detector, inliers, outliers, PGD(Linf(0.008)))
    )
    surface = replace(detector.attack_surface(), needs_float32=True)
    detector.attack_surface = lambda: surface
    assert not any(
        words in line for line in sanity.check(detector, inliers, outliers, PGD(Linf(0.008)))
    )
