"""What attackers may use of a detector: one object, passed on by wrappers."""

from __future__ import annotations

import warnings

import pytest
import torch

from robust_ood import Linf
from robust_ood.attacks import PGD, attack_score
from robust_ood.attacks.precision import resolve
from robust_ood.detectors import (
    MSP,
    ODIN,
    PRO,
    AttackSurface,
    Detector,
    Energy,
    Mean,
    OutputsDetector,
    Standardize,
    Wrapper,
    build,
    surface_of,
)


class Sum(Detector):
    """A new detector of a few lines: nothing is said of attacks."""

    def forward(self, images):
        return images.flatten(1).sum(1)


class Bent(Sum):
    def surrogate(self, images):
        return 2 * images.flatten(1).sum(1)


def test_a_new_detector_is_attacked_through_its_own_score():
    surface = surface_of(Sum())
    assert surface.exact
    assert surface.unmoved is None
    assert not surface.needs_float32
    (surrogate,) = surface.surrogates
    assert surrogate(torch.ones(2, 3, 4, 4)).tolist() == [48, 48]


def test_a_surrogate_of_its_own_is_compared_with_the_score():
    assert not surface_of(Bent()).exact


class Rounded(OutputsDetector):
    def score(self, out):
        return out.logits.amax(1).round()

    def surrogate(self, images):
        return self.net(images).amax(1)


class RoundedWrapper(Wrapper):
    def forward(self, images):
        return self.detector(images).round()

    def surrogate(self, images):
        return self.detector.surrogate(images)


def test_overriding_surrogate_alone_is_enough_in_every_kind_of_detector(make_net):
    net = make_net()
    assert not surface_of(Rounded(net)).exact
    assert not surface_of(RoundedWrapper(Energy(net))).exact
    assert surface_of(Energy(net)).exact


def test_map_changes_every_stand_in_alike():
    surface = AttackSurface((torch.sin, torch.cos), exact=True, unmoved=(torch.tan,))
    doubled = surface.map(lambda surrogate: lambda x: 2 * surrogate(x))
    x = torch.tensor([0.3])
    assert [float(f(x)) for f in doubled.surrogates] == pytest.approx(
        [2 * float(torch.sin(x)), 2 * float(torch.cos(x))]
    )
    assert float(doubled.unmoved[0](x)) == pytest.approx(2 * float(torch.tan(x)))
    assert doubled.exact


@pytest.mark.parametrize(
    ("make", "moves"),
    [
        (MSP, False),
        (ODIN, True),
        (lambda net: PRO(Energy(net)), True),
        (lambda net: Mean([Energy(net), MSP(net)]), False),
        (lambda net: Mean([ODIN(net), Energy(net)]), True),
        (lambda net: Standardize(Energy(net)), False),
        (lambda net: Standardize(ODIN(net)), True),
    ],
)
def test_movement_is_known_through_every_wrapper(make_net, make, moves):
    assert (surface_of(make(make_net())).unmoved is not None) == moves


@pytest.mark.parametrize("name", ["knn", "ash-s"])
def test_what_needs_float32_needs_it_inside_wrappers_too(make_net, make_images, name, monkeypatch):
    monkeypatch.setattr("robust_ood.attacks.precision.has_bfloat16", lambda device: True)
    net = make_net(dtype=torch.float32)
    images = make_images(dtype=torch.float32)
    detector = build(name, net)
    assert resolve("auto", images, detector) == "float32"
    assert resolve("auto", images, Mean([detector, Energy(net)])) == "float32"
    assert resolve("auto", images, Energy(net)) == "bfloat16"


class OldStyle(Sum):
    """Written for an earlier release: it overrides what the attack surface now says at once."""

    exact_surrogate = False
    needs_float32 = True

    def surrogate(self, images):
        return 0 * images.flatten(1).sum(1)

    @property
    def surrogates(self):
        return (self.surrogate, self)

    @property
    def unmoved(self):
        return Sum()


def test_old_overrides_still_count_and_say_what_to_write_now():
    with pytest.warns(DeprecationWarning, match=r"OldStyle\.surrogates .* attack_surface\(\)"):
        surface = surface_of(OldStyle())
    assert len(surface.surrogates) == 2
    assert not surface.exact
    assert surface.needs_float32
    assert surface.unmoved is not None


def test_an_attack_follows_old_overrides():
    images = torch.full((2, 3, 4, 4), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = attack_score(OldStyle(), images, PGD(Linf(0.1), steps=3, random_start=False), 1)
    assert torch.allclose(found.values, torch.tensor([48 * 0.4, 48 * 0.4]), atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("exact_surrogate", True), ("needs_float32", False)])
def test_old_names_can_still_be_read(name, value):
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(Sum(), name) is value


class Extended(Energy):
    """An override that adds to what it inherits."""

    @property
    def surrogates(self):
        return (*super().surrogates, self.confidence)

    @property
    def exact_surrogate(self):
        return super().exact_surrogate


class Careful(Energy):
    """A property that the constructor sets."""

    def __init__(self, net):
        super().__init__(net)
        self.needs_float32 = True


class OldWrapper(Wrapper):
    """A wrapper that forwards every old name by hand."""

    def forward(self, images):
        return self.detector(images)

    @property
    def surrogates(self):
        return (self.surrogate, *self.detector.surrogates)

    @property
    def exact_surrogate(self):
        return self.detector.exact_surrogate

    @property
    def unmoved(self):
        return self.detector.unmoved


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_override_may_extend_what_it_inherits(make_net):
    surface = surface_of(Extended(make_net()))
    assert len(surface.surrogates) == 2
    assert surface.exact


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_name_set_by_a_constructor_counts(make_net, make_images, monkeypatch):
    monkeypatch.setattr("robust_ood.attacks.precision.has_bfloat16", lambda device: True)
    net = make_net(dtype=torch.float32)
    images = make_images(dtype=torch.float32)
    assert resolve("auto", images, Careful(net)) == "float32"
    assert resolve("auto", images, Mean([Careful(net), Energy(net)])) == "float32"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [Energy, ODIN, lambda net: PRO(Energy(net))])
def test_an_old_wrapper_forwards_the_wrapped_surface(make_net, make_images, make):
    images = make_images()
    wrapped = make(make_net())
    inner = surface_of(wrapped)
    outer = surface_of(OldWrapper(wrapped))
    assert outer.exact == inner.exact
    assert len(outer.surrogates) == 1 + len(inner.surrogates)
    expected = inner.surrogates if inner.unmoved is None else inner.unmoved
    for ours, theirs in zip(outer.unmoved, expected, strict=True):
        assert torch.equal(ours(images), theirs(images))


def test_unmoved_can_still_be_read(make_net, make_images):
    images = make_images()
    net = make_net()
    energy = Energy(net)
    with pytest.warns(DeprecationWarning, match="unmoved"):
        assert energy.unmoved is energy
    odin = ODIN(net)
    with pytest.warns(DeprecationWarning, match="unmoved"):
        still = odin.unmoved
    assert torch.equal(still(images), surface_of(odin).unmoved[0](images))
